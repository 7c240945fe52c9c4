"""GGUF files of llama.cpp, in and out: decoders, encoders (mmproj) and tokenizers."""

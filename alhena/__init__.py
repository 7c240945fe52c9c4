"""Alhena: natively multimodal models, from raw documents to a served answer.

corpus      raw files → clean, deduplicated, decontaminated, mixed Documents
tokens      Documents → packed Batches of tokens, patches and frames
model       Batch → logits
train       Batches → base model
align       base → assistant
compress    assistant → Nano, 4-bit
serve       weights → answers
evaluate    answers → report card
"""

"""How a model uses its context: keys of long texts, needles in long media, and loss by position; a heat map each, and the card's rows.

key_values   pairs at a depth of a long text, a question after it                     accuracy by tokens and depth
needles      a number in a long recording, a digit in one of many frames              accuracy by seconds or frames, and depth
loss         long running text                                                        nats per token by position
measure      what `alhena context` writes
"""

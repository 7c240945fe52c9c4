"""Pretrain: packed Batches become a base model, trained jointly on all modalities from the first step."""

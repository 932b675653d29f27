"""Trains the demo models: data, tokenizer, training, judgement. `train_demo.py` runs it."""

"""Bringing the quality of a smaller model back: one training loop, losses, recall adapters, schedules, closed-form compensation.

- `loop`: `recover(student, teacher, data)`, the one loop; `options` are its settings, `phases` schedules of them
- `losses`: what the student is asked to match; `objective` puts them together, `head` keeps logits of large vocabularies out of memory
- `adapters`: weight recalling and LoRA, merged exactly afterwards
- `regression`, `stream`, `module`: least squares instead of training, for checkpoints block by block and for modules in memory
- `order`, `storage`, `ranks`: which sample when, what is on disk, several processes
"""

"""Where models sample and learn. Not here: jobs, grading, HTTP, SQL.

`base.py` names what travels and the four primitives (sample, train_step, save, load). `torch/` is
the embedded engine, `tinker/` the one on other machines. A job's plan and a model's record name
their engine; the training story and the chat queue know only the protocols of `base.py`.

Letters in shape comments and suffixes, everywhere in the server:

    B  prompts of one step            G  completions of one prompt (a group)
    T  token positions                P  tokens of a prompt
    N  tokens laid end to end         R  rows that decode together
    H  query heads, K key/value heads D  size of one head
    V  vocabulary

A ragged list carries its axes as a suffix (`rewards_G`, `tokens_G_T`); a tensor carries them in a
trailing comment, `# (N, V)`.
"""

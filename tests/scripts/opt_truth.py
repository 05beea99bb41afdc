"""Make the folder of a small OPT with its tokenizer, and write down what plain transformers answers to some prompts.

python opt_truth.py FOLDER: then FOLDER holds the model, and FOLDER.json a list of [prompt, max_tokens, text].
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tutorial_src" / "opt"))

import models
import text
import tokens
import torch
from transformers import AutoTokenizer, OPTForCausalLM

folder = Path(sys.argv[1])
model, _ = models.build("tiny")
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # so that the answers are not one token repeated
            parameter.mul_(0.2 if "embed_tokens" in name else 50.0 if "embed_positions" in name else 5.0)
model.save_pretrained(folder)
tokens.get(None, text.get()[0], model.config.vocab_size)[0].save_pretrained(folder)

model = OPTForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
written = text.get()[0]
truth = []
for at in range(24):
    prompt = written[at * 500 : at * 500 + 20 + (at * 37) % 300]
    most = 8 + (at * 5) % 33
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, use_cache=True
    )[0, ids.shape[1] :]
    truth.append([prompt, most, tokenizer.decode(made, skip_special_tokens=True)])
Path(f"{folder}.json").write_text(json.dumps(truth), encoding="utf-8")

"""Options of lm-eval that the tests of several ways to score go through."""

CHAT = {"apply_chat_template": True, "fewshot_as_multiturn": True, "num_fewshot": 1}
RUN = {
    "default": ({}, {}),
    "a large batch": ({}, {"batch_size": 8}),
    "batch_size auto": ({"max_batch_size": 4}, {"batch_size": "auto"}),
    "a chat template": ({}, CHAT),
    "a system prompt": ({}, {"apply_chat_template": True, "system_instruction": "be short"}),
    "no bos, short context": ({"add_bos_token": False, "max_length": 32}, {}),
    "bos": ({"add_bos_token": True}, {}),
    "prefix token": ({"prefix_token_id": 4}, {}),
    "end of thought, token": ({"think_end_token": 40}, {}),
    "end of thought, text": ({"think_end_token": "2"}, {}),
    "float16": ({"dtype": "float16"}, {}),
    "bfloat16, eager attention": ({"dtype": "bfloat16", "attn_implementation": "eager"}, {}),
    "float64": ({"dtype": "float64"}, {}),
    "softmax dtype": ({"dtype": "bfloat16", "softmax_dtype": "float32"}, {}),
    "parallelize": ({"parallelize": True}, {}),
    "device_map": ({"device_map": "cpu"}, {}),
    "no logits cache": ({"logits_cache": False}, {}),
    "a setting of the model's config": ({"rms_norm_eps": 0.1}, {}),
    "sampling": ({}, {"gen_kwargs": "do_sample=True,temperature=0.7,max_gen_toks=8"}),
}
"""Each by what it is: model_args, and arguments of `lm_eval.simple_evaluate`."""

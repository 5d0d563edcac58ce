"""MBPP, in the alpaca prompt of DARE and WIDEN; zero-shot, greedy."""

from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.alpaca import AlpacaDataset, MbppEvaluator

mbpp_alpaca_datasets = [
    dict(
        abbr="mbpp_alpaca",
        type=AlpacaDataset,
        path="mbpp",
        reader_cfg=dict(input_columns=["alpaca_prompt"], output_column="alpaca_row"),
        infer_cfg=dict(
            prompt_template=dict(type=PromptTemplate, template="{alpaca_prompt}"),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(
                type=GenInferencer,
                generation_kwargs=dict(do_sample=False),
                max_out_len=2048,
            ),
        ),
        eval_cfg=dict(evaluator=dict(type=MbppEvaluator)),
    ),
]

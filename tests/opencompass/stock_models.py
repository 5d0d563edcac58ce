"""OpenCompass's own classes. They call what transformers 5 removed; nothing else is changed."""

from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate


class StockChat(HuggingFacewithChatTemplate):
    def _load_tokenizer(self, *args, **kwargs):
        super()._load_tokenizer(*args, **kwargs)
        if not hasattr(self.tokenizer, "batch_encode_plus"):
            self.tokenizer.batch_encode_plus = self.tokenizer.__call__


class Stock(StockChat, HuggingFaceBaseModel):
    pass

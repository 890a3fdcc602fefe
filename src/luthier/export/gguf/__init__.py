"""Models as llama.cpp reads them: one GGUF file with weights, settings, tokenizer and chat template."""

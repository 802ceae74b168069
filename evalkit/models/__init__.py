"""Model adapters: what reads prompts and answers, and how its streams are read and changed."""

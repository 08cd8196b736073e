"""Single flight: equal prompts asked at the same time are asked once, in one process and in all."""

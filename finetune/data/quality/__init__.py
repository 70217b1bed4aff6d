"""The audit's judgement of pictures and captions, its thresholds, advice and repairs."""

"""What is known of bases at their true size."""

DECODING = {"qwen": 8.4, "sd15": 1.3, "sd21": 2.5, "others": 4.1}
"""GiB that decoding one picture takes at the base's own size, weights included; as tests/training/test_real_size.py
measures it on a CPU"""

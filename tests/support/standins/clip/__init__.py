"""The package name of OpenAI's CLIP, by which its image encoder is known."""

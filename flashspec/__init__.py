"""flashspec: what makes speculative decoding fast, and when does it pay?"""

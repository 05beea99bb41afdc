"""What a rank measures of itself: step time, memory, and the bytes that it communicates.

`timing`, `memory` and `communication` each need torch, and nothing else of the kit; import the one you use.
"""

"""What calls cost: the user's prices, a file of prices, and the list of the package genai-prices, in this order."""

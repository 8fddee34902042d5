"""The source of REST APIs: pages are asked for one by one, and landed as they are received."""

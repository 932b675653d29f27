"""The roofline screen: kernel classes of the step under the cursor, and how they move."""

"""Notifications: tells people of the events of jobs over chat, push and mail, by apprise in a process of its own."""

"""The role of c9portal: web pages where a firm's administrators and users see and change what is theirs.

That there is a portal, and that *Voice via Web Proxy* is switched there for each user, is documented. All else here is
invented.

portal      puts the pages together, and serves them
neighbours  what the portal needs of signaling and recordings
pages       templates to HTML, the headers of each answer, and the files that pages load
logins      cookies, who is logged in, and the tokens that prove that a form is ours
visits      one request: who asks, whether they may, and what they sent
forms       what a form sent, checked; and what a person sees of a form, with the mistakes beside the fields
parts       the database, the clock and the neighbours, for every page
listing     pages of long lists, and the parts of a list's address
firms       what a firm owns: its users and lines, and the rules that more than one page needs
overview, profile, users, lines, buttons, recordings, api_keys, firm, audit_log, faults_page   one file for each page
"""

"""Is this network ready for Cloud9 voice, and if not, who must change what?

Probes see and checks judge. A probe opens sockets, ends at its deadline, and leaves values. A check reads these values,
says of each thing whether it works, and names the change that would mend it. So checks need no network, and what was
not seen is not called good.

Words
-----
site     a host that is tested by TCP, TLS and HTTP, maybe through a web proxy
way      how a site is reached: ``direct``, or a web proxy
path     what the voice probe goes over: UDP, or a carrier of a relay
area     a part of the service that gets a verdict of its own, such as voice over UDP
item     one thing that was tested, with what was found; *finding* what is wrong, who acts, and what to change

A whole examination::

    from relay.doctor.examine import examine

    report = await examine(plan, on_step=print)
    for finding in report.findings:
        print(finding.code, finding.actor, finding.change)

Files
-----
plan        what is to be tested, and with which limits; ``targets`` makes one of an emulator, a relay or the vendor
seen        what probes saw; ``failures`` says at which step a connection has failed
probes/     see: names, proxies, sites, WebSocket, UDP, carriers, voice
pac         asks a PAC file, in a child process (``pac_engine``) with limits
checks/     judge: a class for each code
rules       the change as rules for firewalls and web proxies, from the catalog
report      items, findings, and the verdict of each area; ``difference`` compares two
examine     runs the probes in parallel, and then the checks
table, page  the report for a terminal, and as one HTML file; both use ``sparkline``
explain     the explanation of each check, from its class
commands    the command line; ``asked`` makes a plan of its options, and runs it
"""

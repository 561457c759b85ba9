"""The recording upload (jrec): metadata and media come apart, in any order, and media in as many parts as needed.

models      what goes over the wire, each with its mark
formats     Ogg/Opus and M4A, recognised by their content; pure
disk        files of media, written so that nothing that was acknowledged is lost
places      who uploads to which recording now, and how a newer request takes over
locks       the same between processes with one folder
intake      one request with media: read, bounded, and written as it comes
rules       what may be changed when, and when media is what its metadata says; pure
recordings  what there is, what it lacks, and when it is whole
endpoints   the HTTP side
"""

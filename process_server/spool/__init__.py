"""The spool: batches that are acknowledged and not yet in storage, per machine and epoch. From the machine inwards:

spool           the folder of all machines; threads and upload slots that they share
sides           whether who says Hello is the machine, or a copy of it               storage, for a moment
machine_log     one machine: which epoch it is in, and who may go on with it        waits for storage
rivals          whether another copy is at work in the epoch elsewhere          waits for storage
older_epochs    its other epochs, uploaded beside the newest
watch           an epoch of which files are here and no log is open
epoch_log       the two ends of one epoch: writer, uploader
writer          batches in, durable files out                                       fdatasync, in groups
level           how hard batches are compressed                                    pure
uploader        closed files to listed segments, in order                           storage, with retries
evidence        how the files here stand to the index
ownership       open, retake, wait, quarantine or delete: what becomes of them      pure
machine_folder  the machine's folder on disk
recovery        what a kill or a power cut left, made segments again
aside           what cannot be read or listed, kept and told
file            one file: written, made durable, closed, read for upload
watermark       what a folder remembers of its term and of what was listed
chore           work that is tried until it is done
"""

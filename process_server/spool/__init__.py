"""The spool: batches that are acknowledged and not yet in storage, per machine and epoch. From the machine inwards:

spool           the folder of all machines; threads and upload slots that they share
sides           whether who says Hello is the machine, or a copy of it               storage, for a moment
machine_log     one machine: which epoch it is in, and who may go on with it        waits for storage
machine_folder  its folder on disk: its epochs, whose they are, opening them
older_epochs    the rest of epochs that are over, uploaded beside the newest
epoch_log       the two ends of one epoch: writer, uploader
writer          batches in, durable files out                                       fdatasync, in groups
file            one file: written, made durable, closed, read for upload
recovery        what a kill or a power cut left, made segments again
watermark       what a folder remembers of its term and of what was listed
uploader        closed files to listed segments, in order                           storage, with retries
ownership       open, retake, wait, quarantine or delete: what becomes of an epoch here  pure
reconcile       what of a recovered spool is still to be uploaded                    pure
chore, threads  work that is tried until it is done; blocking work done to its end
"""

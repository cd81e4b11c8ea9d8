"""From a data set's official files to shards, and back.

official       the record that a data set's reader makes of its official files
preparing      official files -> a folder of shards, on all cores, resumed after a kill
reencode       images made smaller or cut out before they are stored
shards         ArrayRecord files, written whole or not at all
records        one example as it lies in a shard
index          what is known of all examples at once: labels, classes, other splits
prepared       a prepared folder -> examples by position
verify         reads all of a folder and says what it found
file_data_set  all of this, as a data set's `open_split`, `prepare` and `verify`
"""

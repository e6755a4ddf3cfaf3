package ring

// PartitionOf returns the partition, 0 to Partitions-1, of a chunk, the same in
// every ring. It takes a few nanoseconds.
func PartitionOf(l LineageID, c ChunkIndex) int { return partition(l, c) }

// Partition returns the Copies() nodes that keep the chunks of partition p, as
// Nodes does for one of them.
func (r *Ring) Partition(p int) []NodeID { return r.row(p) }

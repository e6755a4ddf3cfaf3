package node

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// A metric is one line of the API's /metrics: the text format of Prometheus,
// version 0.0.4. A library would add hundreds of kilobytes for a dozen lines.
type metric struct {
	name, help, kind string
	value            float64
}

func (n *Node) serveMetrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	var b bytes.Buffer
	for _, m := range n.metrics(r) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s %s\n",
			m.name, m.help, m.name, m.kind, m.name, strconv.FormatFloat(m.value, 'f', -1, 64))
	}
	_, err := w.Write(b.Bytes())
	_ = err // the client is gone: nobody is left to tell
}

func (n *Node) metrics(r *http.Request) []metric {
	h := n.health(r.Context())
	all := []metric{{"torus_healthy", "1 if the node does its work, else 0.", "gauge", truth(h.Healthy)}}
	count := func(name, help string, v int64) {
		all = append(all, metric{"torus_" + name + "_total", help, "counter", float64(v)})
	}
	gauge := func(name, help string, v float64) { all = append(all, metric{"torus_" + name, help, "gauge", v}) }
	if n.store != nil {
		st := n.stat(r.Context())
		gauge("store_capacity_bytes", "What may be used for pages.", float64(st.Capacity))
		gauge("store_used_bytes", "On disk, dead pages included.", float64(st.Used))
		gauge("store_live_bytes", "Of live data pages.", float64(st.Live))
		gauge("store_no_space", "1 if writes are refused.", truth(st.NoSpace))
		gauge("store_failed", "1 if the store serves no more.", truth(st.Failed != ""))
		count("store_corrupt_pages", "Pages found corrupt.", st.Corrupt)
		count("store_writes", "Write requests.", st.Writes)
		count("store_reads", "Read requests.", st.Reads)
		count("store_syncs", "Sync requests.", st.Syncs)
		count("store_written_bytes", "Bytes written by clients.", st.BytesWritten)
		count("store_read_bytes", "Bytes read by clients.", st.BytesRead)
		count("store_disk_written_bytes", "Bytes written to segments.", st.BytesToDisk)
		count("store_collected_bytes", "Bytes copied by the collector.", st.BytesCollected)
	}
	if n.blocks != nil {
		st := n.blocks.Stats()
		gauge("blocks_connections", "Connections of exporters on other nodes.", float64(st.Connections))
		gauge("blocks_requests_in_flight", "Their requests being served.", float64(st.Running))
		gauge("blocks_volumes_attached", "Volumes that they have attached here.", float64(st.Volumes))
	}
	if n.nbd != nil {
		st := n.nbd.Stats()
		gauge("nbd_connections", "Clients connected.", float64(st.Connections))
		gauge("nbd_requests_in_flight", "Requests being served.", float64(st.InFlight))
		gauge("nbd_held_bytes", "Memory of requests in flight.", float64(st.BytesHeld))
		gauge("nbd_volumes_attached", "Volumes attached by this node.", float64(n.exports.count()))
		count("nbd_reads", "Read requests.", st.Reads)
		count("nbd_writes", "Write requests.", st.Writes)
		count("nbd_flushes", "Flush requests.", st.Flushes)
		count("nbd_trims", "Trim requests.", st.Trims)
		count("nbd_zeroes", "Write-zeroes requests.", st.Zeroes)
		count("nbd_read_bytes", "Bytes read.", st.BytesRead)
		count("nbd_written_bytes", "Bytes written.", st.BytesWritten)
		count("nbd_errors", "Requests that failed.", st.Errors)
	}
	gauge("start_time_seconds", "When the node was started, since 1970.", float64(n.since.UnixMilli())/1000)
	gauge("uptime_seconds", "Since then.", time.Since(n.since).Seconds())
	return all
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

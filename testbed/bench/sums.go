package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// What the sums assume of a lease, beside what was measured.
const (
	renewalShare = 0.19   // renewals are this share of D apart: from 0.9 to 1 of an interval of D/5
	versionBytes = 1000.0 // of etcd's history, for a version of a Lease of half as much, with its index
	history      = 600.0  // seconds for which etcd keeps it, at most: two compactions
	yardstick    = 500.0  // writes of Leases per second of a cluster with 5,000 nodes
)

// sums tells what the measured costs mean for fleets that no bench can run, in a table for 10,000 candidates of one
// lease and one for 100,000 leases, each with a leader and a standby. It is nil if the costs were not measured.
func (r *report) sums() [][][]string {
	if r.WriteCPU <= 0 || r.EventCPU <= 0 {
		return nil
	}
	const candidates, leases = 10_000, 100_000
	fleet := [][]string{{"D", "writes/s", "events/s", "traffic", "CPU of the API servers"}}
	for _, d := range []float64{15, 60, 300} {
		writes := 1 / (renewalShare * d)
		events := writes * candidates
		fleet = append(fleet, []string{
			seconds(d), digits(writes), digits(events), r.traffic(events), cores(writes*r.WriteCPU + events*r.EventCPU),
		})
	}
	many := [][]string{{"D", "writes/s", "of the yardstick", "CPU of the API servers", "history in etcd"}}
	for _, d := range []float64{15, 60, 300, 600, 1200} {
		writes := leases / (renewalShare * d)
		many = append(many, []string{
			seconds(d), digits(writes), digits(writes/yardstick) + " x", cores(writes * (r.WriteCPU + 2*r.EventCPU)),
			digits(writes*history*versionBytes/1e9) + " GB",
		})
	}
	return [][][]string{fleet, many}
}

// traffic is what events take on the wire, by what a standby of the steady fleet received, its pings included.
func (r *report) traffic(events float64) string {
	for _, row := range r.Rows {
		if row.What == standbyBytes && row.Leasehold != nil {
			perEvent := row.Leasehold.P50 / 3600 * renewalShare * defaults.duration.Seconds()
			return fmt.Sprintf("%s Mbit/s", digits(events*perEvent*8/1e6))
		}
	}
	return ""
}

// groupSums tells what groups cost that no bench can run, by the size of their tables and by what is measured of
// renewals. A renewal makes an event at its member, at the member that assigns, and at the next in line; a renewal of
// the one that assigns makes one at all.
func (r *report) groupSums() [][]string {
	rows := [][]string{{
		"members", "keys", "table, a few runs each", "in arbitrary order", "a write of it, to all members",
		"writes/s at D = 15 s", "events/s", "CPU of the API servers", "writes/s at D = 60 s",
	}}
	for _, size := range [][2]int{{100, 10_000}, {1000, 65_536}, {2000, 65_536}, {10_000, 65_536}, {1000, 1_000_000},
		{10_000, 1_000_000}} {
		members, keys := size[0], size[1]
		const fewRuns = 4
		few, most := tableSize(members, keys, fewRuns), tableSize(members, keys, keys)
		writes := func(d float64) float64 { return float64(members) / (renewalShare * d) }
		perRenewal := 1 / (renewalShare * 15.0)
		events := 3*writes(15) + float64(members)*perRenewal
		cpu := "-"
		if r.WriteCPU > 0 && r.EventCPU > 0 {
			cpu = cores(writes(15)*r.WriteCPU + events*r.EventCPU)
		}
		rows = append(rows, []string{
			fmt.Sprint(members), fmt.Sprint(keys), format(float64(few), "B"), format(float64(most), "B"),
			format(float64(few)*float64(members), "B"), digits(writes(15)), digits(events), cpu, digits(writes(60)),
		})
	}
	return rows
}

// tableSize returns how many bytes a table has whose members own so many runs of keys each.
func tableSize(members, keys, runs int) int {
	chance := rand.New(rand.NewPCG(uint64(members), uint64(keys)))
	uid := func() string {
		return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", chance.Uint32(), chance.IntN(1<<16), chance.IntN(1<<16),
			chance.IntN(1<<16), chance.Int64N(1<<48))
	}
	const generation = 100_000
	t := &shards.Table{Epoch: chance.Uint64(), Gen: generation, Open: true, Buckets: keys}
	for range 16 {
		t.Marks = append(t.Marks, chance.Uint64())
	}
	for range members {
		t.Rows = append(t.Rows, shards.Row{
			Term: shards.Term{
				Lease: fmt.Sprintf("group-m-%012x", chance.Int64N(1<<48)), UID: uid(),
				Acquired: 1.8e15 + chance.Int64N(1e12),
			},
			Seen: chance.Uint64N(1e9), Identity: fmt.Sprintf("worker-5d8f9c7b6-%05x_%s", chance.IntN(1<<20), uid()),
			Weight: 1, Seconds: 15,
		})
	}
	t.Assigner = t.Rows[0].Term
	length := max(1, keys/(members*runs))
	for len(t.Entries) < keys {
		e := shards.Entry{Owner: chance.IntN(members), Given: generation - chance.Uint64N(8)}
		for range min(length, keys-len(t.Entries)) {
			t.Entries = append(t.Entries, e)
		}
	}
	return len(t.Encode())
}

func cores(n float64) string   { return digits(n) + " cores" }
func seconds(d float64) string { return strconv.FormatFloat(d, 'f', -1, 64) + " s" }

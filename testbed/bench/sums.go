package main

import (
	"fmt"
	"strconv"
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

func cores(n float64) string   { return digits(n) + " cores" }
func seconds(d float64) string { return strconv.FormatFloat(d, 'f', -1, 64) + " s" }

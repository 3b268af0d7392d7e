package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/leasehold-go/leasehold"
)

// metrics returns the state of leases, then of groups, in the text format of Prometheus, with the names, help and order
// of the exposition of leaseprom.
func metrics(leases []leasehold.LeaseStatus, groups []leasehold.GroupStatus) []byte {
	var text bytes.Buffer
	leases = slices.DeleteFunc(slices.Clone(leases), func(s leasehold.LeaseStatus) bool { return s.Group != "" })
	family := func(name, kind, help string) {
		fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %[1]s %[3]s\n", name, help, kind)
	}
	sample := func(name string, value float64, labels ...string) {
		var pairs []string
		for i := 0; i < len(labels); i += 2 {
			pairs = append(pairs, labels[i]+`="`+labelEscaper.Replace(labels[i+1])+`"`)
		}
		fmt.Fprintf(&text, "%s{%s} %s\n", name, strings.Join(pairs, ","), number(value))
	}

	const master = "leader_election_master_status"
	const help = "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates " +
		"master. 'name' is the string used to identify the lease. Please make sure to group by name."
	if len(leases) > 0 {
		family(master, "gauge", help)
	}
	leads := map[string]float64{} // by name alone
	for _, s := range leases {
		leads[s.Name] = max(leads[s.Name], truth(s.Leading))
	}
	for _, name := range slices.Sorted(maps.Keys(leads)) {
		sample(master, leads[name], "name", name)
	}
	slices.SortFunc(leases, func(a, b leasehold.LeaseStatus) int { // as Prometheus's library orders the labels
		return strings.Compare(a.Name+"\x00"+a.Namespace, b.Name+"\x00"+b.Namespace)
	})
	for _, m := range leaseMetrics {
		name := "leasehold_" + m.name
		shown := slices.DeleteFunc(slices.Clone(leases),
			func(s leasehold.LeaseStatus) bool { return m.without != nil && m.without(s) })
		if len(shown) == 0 {
			continue
		}
		family(name, m.kind, m.help)
		for _, s := range shown {
			labels := []string{"name", s.Name, "namespace", s.Namespace}
			switch {
			case m.value != nil:
				sample(name, m.value(s), labels...)
			case m.kind == "histogram":
				h := s.RenewalLatency
				for _, b := range h.Buckets {
					sample(name+"_bucket", float64(b.Count), append(labels, "le", number(b.UpToSeconds))...)
				}
				sample(name+"_bucket", float64(h.Count), append(labels, "le", "+Inf")...)
				sample(name+"_sum", h.SumSeconds, labels...)
				sample(name+"_count", float64(h.Count), labels...)
			default:
				for _, reason := range slices.Sorted(maps.Keys(s.Losses)) {
					sample(name, float64(s.Losses[reason]), append(labels, "reason", reason)...)
				}
			}
		}
	}
	for _, m := range groupMetrics {
		if len(groups) > 0 {
			family("leasehold_"+m.name, m.kind, m.help)
		}
		for _, s := range groups {
			labels := []string{"name", s.Name, "namespace", s.Namespace}
			if m.value != nil {
				sample("leasehold_"+m.name, m.value(s), labels...)
				continue
			}
			for _, why := range slices.Sorted(maps.Keys(s.Ended)) {
				sample("leasehold_"+m.name, float64(s.Ended[why]), append(labels, "why", why)...)
			}
		}
	}
	return text.Bytes()
}

// groupMetrics are the metrics of a group. One without a value is the ends of sessions by why.
var groupMetrics = []struct {
	name, kind, help string
	value            func(leasehold.GroupStatus) float64
}{
	{name: "key_sessions_ended_total", kind: "counter", help: "Sessions of keys that ended, by why."},
	{name: "key_sessions_total", kind: "counter", help: "Sessions of keys that this process began.",
		value: func(s leasehold.GroupStatus) float64 { return float64(s.Sessions) }},
	{name: "keys", kind: "gauge", help: "Keys of the group, as this process sees it.",
		value: func(s leasehold.GroupStatus) float64 { return float64(s.Keys) }},
	{name: "keys_moving", kind: "gauge", help: "Keys that are asked back from their owners.",
		value: func(s leasehold.GroupStatus) float64 { return float64(s.Moving) }},
	{name: "keys_overdue", kind: "gauge",
		help:  "Keys whose work has not returned long after its session ended; 10 at most.",
		value: func(s leasehold.GroupStatus) float64 { return float64(len(s.Overdue)) }},
	{name: "keys_owned", kind: "gauge", help: "Keys that this process owns.",
		value: func(s leasehold.GroupStatus) float64 { return float64(s.Owned) }},
	{name: "keys_unowned", kind: "gauge", help: "Keys that nobody owns.",
		value: func(s leasehold.GroupStatus) float64 { return float64(s.Unowned) }},
}

// leaseMetrics are the metrics of a lease. One without a value is the histogram, or the losses by reason.
var leaseMetrics = []struct {
	name, kind, help string
	value            func(leasehold.LeaseStatus) float64
	without          func(leasehold.LeaseStatus) bool // leaves the lease out
}{
	{name: "campaigning", kind: "gauge", help: "Whether a campaign for the lease is running.",
		value: func(s leasehold.LeaseStatus) float64 { return truth(s.Campaigning) }},
	{name: "changes_total", kind: "counter", help: "Changes of the Lease that were seen, including renewals.",
		value: func(s leasehold.LeaseStatus) float64 { return float64(s.Updates) }},
	{name: "claimed", kind: "gauge", help: "Whether the lease was held, by any candidate, when it was last seen.",
		value: func(s leasehold.LeaseStatus) float64 { return truth(s.Holder != nil) }},
	{name: "duration_seconds", kind: "gauge",
		help:  "How long other candidates leave the lease to a holder that does not renew it.",
		value: func(s leasehold.LeaseStatus) float64 { return s.LeaseDurationSeconds }},
	{name: "failures_total", kind: "counter", help: "Failed requests, other than conflicts with another writer.",
		value: func(s leasehold.LeaseStatus) float64 { return float64(s.Failures) }},
	{name: "leading", kind: "gauge", help: "Whether this process leads.",
		value: func(s leasehold.LeaseStatus) float64 { return truth(s.Leading) }},
	{name: "losses_total", kind: "counter",
		help: "Sessions whose lease was lost, or that made way for another candidate (reason yielded)."},
	{name: "overrun", kind: "gauge", help: "Whether work goes on although its lease is lost.",
		value: func(s leasehold.LeaseStatus) float64 { return truth(s.Overrun) }},
	{name: "priority", kind: "gauge", help: "The priority of this process's candidate.",
		value: func(s leasehold.LeaseStatus) float64 { return float64(s.Priority) }},
	{name: "renewal_latency_seconds", kind: "histogram", help: "Duration of successful renewals."},
	{name: "renewals_total", kind: "counter", help: "Successful renewals.",
		value: func(s leasehold.LeaseStatus) float64 { return float64(s.Renewals) }},
	{name: "sessions_total", kind: "counter", help: "Sessions of this process.",
		value: func(s leasehold.LeaseStatus) float64 { return float64(s.Sessions) }},
	{name: "transitions", kind: "gauge",
		help:    "How often any candidate has acquired the lease, by the count in the Lease; only while it is held.",
		value:   func(s leasehold.LeaseStatus) float64 { return float64(s.Holder.Transitions) },
		without: func(s leasehold.LeaseStatus) bool { return s.Holder == nil }},
	{name: "valid_seconds", kind: "gauge", help: "How long leadership is certain without another renewal.",
		value: func(s leasehold.LeaseStatus) float64 { return s.ValidForSeconds }},
	{name: "winding_down", kind: "gauge", help: "Whether this process leads although its work was told to end.",
		value: func(s leasehold.LeaseStatus) float64 { return truth(s.WindingDown) }},
}

var labelEscaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

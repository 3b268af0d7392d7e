package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/leasehold-go/leasehold"
)

// /metrics says what leaseprom's collector says about the same leases, byte for byte.
func TestMetrics(t *testing.T) {
	want, err := os.ReadFile("../../leaseprom/testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	status := func(namespace, name string, set func(*leasehold.LeaseStatus)) leasehold.LeaseStatus {
		s := leasehold.LeaseStatus{Namespace: namespace, Name: name, LeaseDurationSeconds: 3600,
			Losses: map[string]uint64{}}
		reasons := []string{"expired", "slept", "taken", "deleted", "emptied", "edited", "stalled", "yielded"}
		for _, reason := range reasons {
			s.Losses[reason] = 0
		}
		for _, bound := range []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10} {
			s.RenewalLatency.Buckets = append(s.RenewalLatency.Buckets, leasehold.Bucket{UpToSeconds: bound})
		}
		set(&s)
		return s
	}
	// As Monitor.Leases orders them: by namespace and name.
	got := string(metrics([]leasehold.LeaseStatus{
		status("ns1", "migration", func(s *leasehold.LeaseStatus) { s.Updates, s.Sessions = 3, 1 }),
		status("ns1", "reconciler", func(s *leasehold.LeaseStatus) {
			s.Campaigning, s.Leading, s.ValidForSeconds, s.Holder = true, true, 1234.5, &leasehold.HolderStatus{}
			s.Updates, s.Sessions, s.Renewals, s.Losses["deleted"], s.Priority = 7, 2, 2, 1, 7
			s.RenewalLatency.Count, s.RenewalLatency.SumSeconds = 2, 3
			for i, b := range s.RenewalLatency.Buckets {
				if b.UpToSeconds >= 1.5 {
					s.RenewalLatency.Buckets[i].Count = 2
				}
			}
		}),
		status("ns2", "reconciler", func(s *leasehold.LeaseStatus) {
			s.Campaigning, s.Holder, s.Updates = true, &leasehold.HolderStatus{}, 1
		}),
	}, nil))
	got = regexp.MustCompile(`(leasehold_valid_seconds\{[^}]*\}) 1234.5`).ReplaceAllString(got, "$1 …")
	if got != string(want) {
		t.Errorf("answered\n%s\nwant\n%s", got, want)
	}
	if empty := metrics(nil, nil); len(empty) != 0 {
		t.Errorf("about no lease: %s", empty)
	}
}

// /metrics says of a group what leaseprom's collector says.
func TestGroupMetrics(t *testing.T) {
	source, err := os.ReadFile("../../leaseprom/leaseprom.go")
	if err != nil {
		t.Fatal(err)
	}
	got := string(metrics([]leasehold.LeaseStatus{{Name: "workers-m-0123456789ab", Group: "workers"}},
		[]leasehold.GroupStatus{{Namespace: "default", Name: "workers", Keys: 3, Owned: 2, Unowned: 1, Moving: 4,
			Overdue: []string{"a"}, Sessions: 5, Ended: map[string]uint64{"moved": 6, "lost": 7}}}))
	for _, sample := range []string{
		`keys{name="workers",namespace="default"} 3`, `keys_owned{name="workers",namespace="default"} 2`,
		`keys_unowned{name="workers",namespace="default"} 1`, `keys_moving{name="workers",namespace="default"} 4`,
		`keys_overdue{name="workers",namespace="default"} 1`,
		`key_sessions_total{name="workers",namespace="default"} 5`,
		`key_sessions_ended_total{name="workers",namespace="default",why="lost"} 7`,
		`key_sessions_ended_total{name="workers",namespace="default",why="moved"} 6`,
	} {
		if !strings.Contains(got, "\nleasehold_"+sample+"\n") {
			t.Errorf("no %s in\n%s", sample, got)
		}
	}
	if strings.Contains("\n"+got, "\nleasehold_leading") || strings.Contains(got, "workers-m-") {
		t.Errorf("the member's own Lease has metrics:\n%s", got)
	}
	for _, m := range groupMetrics {
		if !strings.Contains(string(source), `desc("`+m.name+`", "`+m.help+`"`) {
			t.Errorf("leaseprom has no %s with the help %q", m.name, m.help)
		}
	}
	if n := strings.Count(string(source), `desc("key`); n != len(groupMetrics) {
		t.Errorf("leaseprom has %d metrics of groups, this command %d", n, len(groupMetrics))
	}
}

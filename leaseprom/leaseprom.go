// Package leaseprom exposes the state of a leasehold.Monitor as Prometheus metrics.
//
//	var monitor leasehold.Monitor // given to campaigns by leasehold.WithMonitor
//	prometheus.MustRegister(leaseprom.NewCollector(&monitor))
//
// Each metric has one series for each lease that the Monitor knows, with the labels namespace and name; losses have
// a reason too. Dashboards made for client-go find leader_election_master_status.
package leaseprom

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/leasehold-go/leasehold"
)

// NewCollector returns a collector of metrics about all leases that m knows:
//
//	leader_election_master_status{name}     gauge      1 if this process leads a lease of that name in any namespace
//	leasehold_campaigning                   gauge      1 if a campaign for the lease is running
//	leasehold_leading                       gauge      1 if this process holds the lease and its work has not returned
//	leasehold_winding_down                  gauge      1 if it leads although its work was told to end
//	leasehold_valid_seconds                 gauge      how long leadership is certain without another renewal
//	leasehold_overrun                       gauge      1 if work goes on although its lease is lost
//	leasehold_priority                      gauge      the priority of this process's candidate; 0 if it has none
//	leasehold_claimed                       gauge      1 if any candidate held the lease when it was last seen
//	leasehold_duration_seconds              gauge      the duration of the lease
//	leasehold_transitions                   gauge      how often any candidate has acquired the lease
//	leasehold_changes_total                 counter    changes of the Lease that were seen, including renewals
//	leasehold_sessions_total                counter    sessions of this process
//	leasehold_losses_total{reason}          counter    sessions whose lease was lost, or that made way (yielded)
//	leasehold_renewals_total                counter    successful renewals
//	leasehold_failures_total                counter    failed requests
//	leasehold_renewal_latency_seconds       histogram  duration of successful renewals
//
// and about all groups that this process takes part in, where name is that of the group. The member's own Lease has no
// other metrics: its name is new for each process, and each would make new series.
//
//	leasehold_keys                          gauge      keys of the group, as this process sees it
//	leasehold_keys_owned                    gauge      keys that this process owns
//	leasehold_keys_unowned                  gauge      keys that nobody owns
//	leasehold_keys_moving                   gauge      keys that are asked back from their owners
//	leasehold_keys_overdue                  gauge      keys whose work goes on long after its session ended; 10 at most
//	leasehold_key_sessions_total            counter    sessions of keys that this process began
//	leasehold_key_sessions_ended_total{why} counter    those that ended: moved, lost, returned, failed, left
//
// The collector is unchecked (see [prometheus.Collector]), so that it can be registered beside another one that has
// leader_election_master_status, as the registry of controller-runtime does. A Monitor must not be registered twice.
func NewCollector(m *leasehold.Monitor) prometheus.Collector { return collector{m} }

type collector struct{ monitor *leasehold.Monitor }

var (
	// The help is that of controller-runtime, because a registry allows only one help for a name.
	master = prometheus.NewDesc("leader_election_master_status",
		"Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master. "+
			"'name' is the string used to identify the lease. Please make sure to group by name.",
		[]string{"name"}, nil)

	campaigning = desc("campaigning", "Whether a campaign for the lease is running.")
	leading     = desc("leading", "Whether this process leads.")
	windingDown = desc("winding_down", "Whether this process leads although its work was told to end.")
	valid       = desc("valid_seconds", "How long leadership is certain without another renewal.")
	overrun     = desc("overrun", "Whether work goes on although its lease is lost.")
	claimed     = desc("claimed", "Whether the lease was held, by any candidate, when it was last seen.")
	priority    = desc("priority", "The priority of this process's candidate.")
	duration    = desc("duration_seconds",
		"How long other candidates leave the lease to a holder that does not renew it.")
	transitions = desc("transitions",
		"How often any candidate has acquired the lease, by the count in the Lease; only while it is held.")
	changes  = desc("changes_total", "Changes of the Lease that were seen, including renewals.")
	sessions = desc("sessions_total", "Sessions of this process.")
	losses   = desc("losses_total",
		"Sessions whose lease was lost, or that made way for another candidate (reason yielded).", "reason")
	renewals = desc("renewals_total", "Successful renewals.")
	failures = desc("failures_total", "Failed requests, other than conflicts with another writer.")
	latency  = desc("renewal_latency_seconds", "Duration of successful renewals.")

	keys        = desc("keys", "Keys of the group, as this process sees it.")
	keysOwned   = desc("keys_owned", "Keys that this process owns.")
	keysUnowned = desc("keys_unowned", "Keys that nobody owns.")
	keysMoving  = desc("keys_moving", "Keys that are asked back from their owners.")
	keysOverdue = desc("keys_overdue", "Keys whose work has not returned long after its session ended; 10 at most.")
	keySessions = desc("key_sessions_total", "Sessions of keys that this process began.")
	keyEnds     = desc("key_sessions_ended_total", "Sessions of keys that ended, by why.", "why")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("leasehold_"+name, help, append([]string{"namespace", "name"}, labels...), nil)
}

// Describe sends nothing, which makes the collector unchecked.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the present metrics of all leases.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	leads := map[string]bool{} // by name alone
	for _, s := range c.monitor.Leases() {
		if s.Group != "" {
			continue
		}
		leads[s.Name] = leads[s.Name] || s.Leading
		send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
			metrics <- prometheus.MustNewConstMetric(desc, kind, value,
				append([]string{s.Namespace, s.Name}, labels...)...)
		}
		gauge := func(desc *prometheus.Desc, value float64) { send(desc, prometheus.GaugeValue, value) }
		count := func(desc *prometheus.Desc, value uint64, labels ...string) {
			send(desc, prometheus.CounterValue, float64(value), labels...)
		}

		gauge(campaigning, number(s.Campaigning))
		gauge(leading, number(s.Leading))
		gauge(windingDown, number(s.WindingDown))
		gauge(valid, s.ValidForSeconds)
		gauge(overrun, number(s.Overrun))
		gauge(priority, float64(s.Priority))
		gauge(claimed, number(s.Holder != nil))
		gauge(duration, s.LeaseDurationSeconds)
		if s.Holder != nil {
			gauge(transitions, float64(s.Holder.Transitions))
		}
		count(changes, s.Updates)
		count(sessions, s.Sessions)
		for reason, n := range s.Losses {
			count(losses, n, reason)
		}
		count(renewals, s.Renewals)
		count(failures, s.Failures)
		buckets := map[float64]uint64{}
		for _, b := range s.RenewalLatency.Buckets {
			buckets[b.UpToSeconds] = b.Count
		}
		metrics <- prometheus.MustNewConstHistogram(latency, s.RenewalLatency.Count, s.RenewalLatency.SumSeconds,
			buckets, s.Namespace, s.Name)
	}
	for name, leads := range leads {
		metrics <- prometheus.MustNewConstMetric(master, prometheus.GaugeValue, number(leads), name)
	}
	c.collectGroups(metrics)
}

// collectGroups sends the metrics of all groups. A process that takes part twice in one counts as one member.
func (c collector) collectGroups(metrics chan<- prometheus.Metric) {
	type id struct{ namespace, name string }
	all := map[id]leasehold.GroupStatus{}
	for _, g := range c.monitor.Groups() {
		sum, ok := all[id{g.Namespace, g.Name}]
		if ok {
			g.Owned += sum.Owned
			g.Sessions += sum.Sessions
			g.Overdue = append(g.Overdue, sum.Overdue...)
			for why, n := range sum.Ended {
				g.Ended[why] += n
			}
		}
		all[id{g.Namespace, g.Name}] = g
	}
	for id, g := range all {
		send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
			metrics <- prometheus.MustNewConstMetric(desc, kind, value,
				append([]string{id.namespace, id.name}, labels...)...)
		}
		send(keys, prometheus.GaugeValue, float64(g.Keys))
		send(keysOwned, prometheus.GaugeValue, float64(g.Owned))
		send(keysUnowned, prometheus.GaugeValue, float64(g.Unowned))
		send(keysMoving, prometheus.GaugeValue, float64(g.Moving))
		send(keysOverdue, prometheus.GaugeValue, float64(len(g.Overdue)))
		send(keySessions, prometheus.CounterValue, float64(g.Sessions))
		for why, n := range g.Ended {
			send(keyEnds, prometheus.CounterValue, float64(n), why)
		}
	}
}

// number returns 1 for true and 0 for false, as Prometheus has no booleans.
func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

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
//	leasehold_leading                       gauge      1 if a session is live
//	leasehold_valid_seconds                 gauge      how long leadership is certain without another renewal
//	leasehold_overrun                       gauge      1 if work goes on although its lease is lost
//	leasehold_claimed                       gauge      1 if any candidate held the lease when it was last seen
//	leasehold_duration_seconds              gauge      the duration of the lease
//	leasehold_transitions                   gauge      how often any candidate has acquired the lease
//	leasehold_changes_total                 counter    changes of the Lease that were seen, including renewals
//	leasehold_sessions_total                counter    sessions of this process
//	leasehold_losses_total{reason}          counter    sessions that ended because the lease was lost
//	leasehold_renewals_total                counter    successful renewals
//	leasehold_failures_total                counter    failed requests
//	leasehold_renewal_latency_seconds       histogram  duration of successful renewals
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
	valid       = desc("valid_seconds", "How long leadership is certain without another renewal.")
	overrun     = desc("overrun", "Whether work goes on although its lease is lost.")
	claimed     = desc("claimed", "Whether the lease was held, by any candidate, when it was last seen.")
	duration    = desc("duration_seconds",
		"How long other candidates leave the lease to a holder that does not renew it.")
	transitions = desc("transitions",
		"How often any candidate has acquired the lease, by the count in the Lease; only while it is held.")
	changes  = desc("changes_total", "Changes of the Lease that were seen, including renewals.")
	sessions = desc("sessions_total", "Sessions of this process.")
	losses   = desc("losses_total", "Sessions that ended because the lease was lost.", "reason")
	renewals = desc("renewals_total", "Successful renewals.")
	failures = desc("failures_total", "Failed requests, other than conflicts with another writer.")
	latency  = desc("renewal_latency_seconds", "Duration of successful renewals.")
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
		gauge(valid, s.ValidForSeconds)
		gauge(overrun, number(s.Overrun))
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
}

// number returns 1 for true and 0 for false, as Prometheus has no booleans.
func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

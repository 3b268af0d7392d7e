// Package leaseprom shows what a leasehold.Monitor knows to Prometheus.
//
//	var monitor leasehold.Monitor // given to campaigns by leasehold.WithMonitor
//	prometheus.MustRegister(leaseprom.NewCollector(&monitor))
//
// There is one series of each kind for each lease that this process campaigned for, with the labels namespace and
// name; losses have a reason too. leader_election_master_status is what dashboards for client-go expect.
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
//	leasehold_valid_seconds                 gauge      for how long leadership is certain without another renewal
//	leasehold_overrun                       gauge      1 if work goes on without the lease
//	leasehold_claimed                       gauge      1 if anybody held the lease when it was last seen
//	leasehold_duration_seconds              gauge      the duration of the lease
//	leasehold_transitions                   gauge      how often the lease was acquired by anybody, by its own count
//	leasehold_changes_total                 counter    changes of the Lease that were seen, renewals included
//	leasehold_sessions_total                counter    sessions of this process
//	leasehold_losses_total{reason}          counter    sessions that ended because the lease was lost
//	leasehold_renewals_total                counter    renewals that succeeded
//	leasehold_failures_total                counter    requests that failed
//	leasehold_renewal_latency_seconds       histogram  how long renewals took that succeeded
//
// The collector is unchecked, as package prometheus calls it: it can be registered beside one that has
// leader_election_master_status too, as the registry of controller-runtime does. A Monitor must not be registered
// twice.
func NewCollector(m *leasehold.Monitor) prometheus.Collector { return collector{m} }

type collector struct{ monitor *leasehold.Monitor }

var (
	// In the words of controller-runtime: a registry wants one help for one name.
	master = prometheus.NewDesc("leader_election_master_status",
		"Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master. "+
			"'name' is the string used to identify the lease. Please make sure to group by name.", []string{"name"}, nil)

	campaigning = desc("campaigning", "Whether a campaign for the lease is running.")
	leading     = desc("leading", "Whether this process leads.")
	valid       = desc("valid_seconds", "For how long leadership is certain without another renewal.")
	overrun     = desc("overrun", "Whether work goes on without the lease.")
	claimed     = desc("claimed", "Whether anybody held the lease when it was last seen.")
	duration    = desc("duration_seconds", "For how long others leave the lease to a holder that does not renew it.")
	transitions = desc("transitions", "How often the lease was acquired by anybody, by its own count; only while it is held.")
	changes     = desc("changes_total", "Changes of the Lease that were seen, renewals included.")
	sessions    = desc("sessions_total", "Sessions of this process.")
	losses      = desc("losses_total", "Sessions that ended because the lease was lost.", "reason")
	renewals    = desc("renewals_total", "Renewals that succeeded.")
	failures    = desc("failures_total", "Requests that failed, other than by meeting somebody else's write.")
	latency     = desc("renewal_latency_seconds", "How long renewals took that succeeded.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("leasehold_"+name, help, append([]string{"namespace", "name"}, labels...), nil)
}

// Describe sends nothing, which makes the collector an unchecked one.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the metrics of all leases as they are now.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	leads := map[string]bool{} // by name alone
	for _, s := range c.monitor.Leases() {
		leads[s.Name] = leads[s.Name] || s.Leading
		send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
			metrics <- prometheus.MustNewConstMetric(desc, kind, value, append([]string{s.Namespace, s.Name}, labels...)...)
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
		metrics <- prometheus.MustNewConstHistogram(latency, s.RenewalLatency.Count, s.RenewalLatency.SumSeconds, buckets, s.Namespace, s.Name)
	}
	for name, leads := range leads {
		metrics <- prometheus.MustNewConstMetric(master, prometheus.GaugeValue, number(leads), name)
	}
}

// number returns what Prometheus has for b.
func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/leasehold-go/leasehold"
)

func explainCommand() *command {
	var times timing
	replicas := 3
	output := format("table")
	return &command{
		name:    "explain",
		args:    "[FLAGS]",
		short:   "Explain the times of a lease",
		offline: true,
		long: `
It computes the effects of the duration, the renew deadline and the renew interval: how long a failover takes, which
outage a leader survives, how much time the work has to stop, and how many requests the API server answers. It makes
none itself.`,
		examples: `
leasehold explain
leasehold explain --duration 60s
leasehold explain --duration 30s --renew-deadline 20s --replicas 10`,
		flags: func(flags *pflag.FlagSet) {
			times.flags(flags)
			flags.IntVar(&replicas, "replicas", replicas, "number of candidates")
			flags.TextVarP(&output, "output", "o", output, "output `format`: table, json or yaml")
		},
		run: func(t *tool, args []string, _ int) error {
			if len(args) > 0 {
				return usagef("want no arguments, not %s", strings.Join(args, " "))
			}
			if replicas < 1 {
				return usagef("--replicas %d: want at least 1", replicas)
			}
			times.complete()
			opts := append(times.options(), leasehold.WithLease("any"))
			if err := check(opts); err != nil {
				return usageError{err}
			}
			e := explain(times, replicas)
			switch output {
			case "table":
				return e.print(t.out)
			case "name":
				return usagef("--output name: want table, json or yaml")
			}
			return output.marshal(t.out, e)
		},
	}
}

// An explanation has the effects of the times of a lease, in seconds.
type explanation struct {
	DurationSeconds      float64 `json:"durationSeconds"`
	RenewDeadlineSeconds float64 `json:"renewDeadlineSeconds"`
	RenewIntervalSeconds float64 `json:"renewIntervalSeconds"`
	Replicas             int     `json:"replicas"`

	FailoverAfterCrashMinSeconds     float64 `json:"failoverAfterCrashMinSeconds"`
	FailoverAfterCrashMaxSeconds     float64 `json:"failoverAfterCrashMaxSeconds"`
	FailoverWithoutWatchMaxSeconds   float64 `json:"failoverAfterReleaseWithoutWatchMaxSeconds"`
	OutageSurvivedSeconds            float64 `json:"outageAlwaysSurvivedSeconds"`
	OutageFatalSeconds               float64 `json:"outageNeverSurvivedSeconds"`
	StopSeconds                      float64 `json:"timeToStopSeconds"`
	StopTimeoutSeconds               float64 `json:"defaultStopTimeoutSeconds"`
	ClockRateTolerance               float64 `json:"clockRateTolerance"`
	LeaderRequestsPerHour            int     `json:"leaderRequestsPerHour"`
	StandbyRequestsPerHour           int     `json:"standbyRequestsPerHour"`
	RequestsPerHour                  int     `json:"requestsPerHour"`
	WatchEventsPerHour               int     `json:"watchEventsPerHour"`
	StandbyPollsPerHourWithoutWatch  int     `json:"standbyRequestsPerHourWithoutWatch"`
	LongestRequestBeforeRetrySeconds float64 `json:"renewalTimeoutSeconds"`
}

func explain(t timing, replicas int) explanation {
	d, r, i := t.duration, t.renewDeadline, t.renewInterval
	// A renewal times out after a quarter of the time that the deadline leaves after the interval. If the API server
	// comes back just after one was sent, that one times out, and the retry follows at most a quarter of a timeout
	// later.
	timeout := min((r-i)/4, 10*time.Second)
	// A renewal is sent 0.9 to 1 interval after the last. The API server ends a watch after 30 to 60 minutes; then the
	// Lease is read and watched again.
	renewals := int(time.Hour / (i * 95 / 100))
	const following = 3
	e := explanation{
		DurationSeconds:      d.Seconds(),
		RenewDeadlineSeconds: r.Seconds(),
		RenewIntervalSeconds: i.Seconds(),
		Replicas:             replicas,

		FailoverAfterCrashMinSeconds:     (d - i).Seconds(),
		FailoverAfterCrashMaxSeconds:     d.Seconds(),
		FailoverWithoutWatchMaxSeconds:   i.Seconds(),
		OutageSurvivedSeconds:            (r - i - timeout - timeout/4).Seconds(),
		OutageFatalSeconds:               r.Seconds(),
		StopSeconds:                      (d - r).Seconds(),
		StopTimeoutSeconds:               ((d - r) / 2).Seconds(),
		ClockRateTolerance:               float64(d) / float64(r),
		LeaderRequestsPerHour:            renewals + following,
		StandbyRequestsPerHour:           following,
		RequestsPerHour:                  renewals + following*replicas,
		WatchEventsPerHour:               renewals * replicas,
		StandbyPollsPerHourWithoutWatch:  int(time.Hour / i),
		LongestRequestBeforeRetrySeconds: timeout.Seconds(),
	}
	return e
}

func (e explanation) print(w io.Writer) error {
	seconds := func(s float64) string {
		return time.Duration(s * float64(time.Second)).Round(time.Millisecond).String()
	}
	var rows [][]string
	row := func(name, value, why string) { rows = append(rows, []string{name, value, why}) }
	row("Duration", seconds(e.DurationSeconds),
		"how long others wait before they acquire a lease that is not renewed")
	row("Renew deadline", seconds(e.RenewDeadlineSeconds),
		"how long a holder trusts its lease after sending its last successful renewal")
	row("Renew interval", seconds(e.RenewIntervalSeconds),
		"from one renewal to the next; a request times out after "+
			seconds(e.LongestRequestBeforeRetrySeconds)+" and is retried")
	row("", "", "")
	row("Failover after a crash", fmt.Sprintf("%s to %s", seconds(e.FailoverAfterCrashMinSeconds),
		seconds(e.FailoverAfterCrashMaxSeconds)), "plus one request: the rest of the duration after the last renewal")
	row("Failover after a release", "one request",
		"standbys watch; without the right to watch up to "+seconds(e.FailoverWithoutWatchMaxSeconds))
	row("API outage survived", seconds(e.OutageSurvivedSeconds),
		"whenever it begins; nearly "+seconds(e.OutageFatalSeconds)+" if it begins just after a renewal")
	row("Time to stop", seconds(e.StopSeconds),
		"from the session's end until another may lead; run sends SIGKILL after "+seconds(e.StopTimeoutSeconds))
	row("Clock rates may differ by", fmt.Sprintf("%.0f %%", 100*(e.ClockRateTolerance-1)),
		"the times that clocks show may differ by any amount")
	row("", "", "")
	row("Requests of the leader", fmt.Sprintf("%d an hour", e.LeaderRequestsPerHour), "")
	row("Requests of a standby", fmt.Sprintf("%d an hour", e.StandbyRequestsPerHour),
		fmt.Sprintf("to follow the Lease; without the right to watch %d", e.StandbyPollsPerHourWithoutWatch))
	row(fmt.Sprintf("Requests of all %d", e.Replicas), fmt.Sprintf("%d an hour", e.RequestsPerHour),
		fmt.Sprintf("and %d watch events", e.WatchEventsPerHour))
	return new(table).print(w, rows)
}

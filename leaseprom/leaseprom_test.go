package leaseprom_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leaseprom"
	"github.com/leasehold-go/leasehold/leasetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// byChance matches the values that depend on chance: for how long a lease is valid.
var byChance = regexp.MustCompile(`(leasehold_valid_seconds\{[^}]*\}) [0-9.]*[1-9][0-9.]*`)

// The exposition covers a lease that is led again after it was lost, one of the same name in another namespace that
// another process holds, and one whose campaign is over.
func TestExposition(t *testing.T) {
	golden, err := os.ReadFile("testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		srv := leasetest.NewServer()
		ctx, cancel := context.WithCancel(t.Context())
		var monitor leasehold.Monitor
		var loops sync.WaitGroup
		campaign := func(ctx context.Context, identity, namespace, name string) {
			client := srv.Client(identity)
			client.OnRequest(func(r leasetest.Request) leasetest.Fault {
				if r.Verb == "patch" {
					// longer than any request takes on a busy machine
					return leasetest.Fault{After: 1500 * time.Millisecond}
				}
				return leasetest.Fault{}
			})
			opts := []leasehold.Option{
				leasehold.WithClient(client), leasehold.WithIdentity(identity), leasehold.WithNamespace(namespace),
				leasehold.WithLease(name),
				leasehold.WithLogger(slog.New(slog.DiscardHandler)),
			}
			// Durations are long because CLOCK_BOOTTIME, by which a session is judged too, advances while virtual time
			// stands still.
			if identity != "other" {
				opts = append(opts, leasehold.WithMonitor(&monitor), leasehold.WithDuration(time.Hour))
				if identity == "one" {
					opts = append(opts, leasehold.WithPriority(7))
				}
			} else {
				// its first renewal would come after the end of the test
				opts = append(opts, leasehold.WithDuration(24*time.Hour))
			}
			loops.Go(func() {
				for s := range leasehold.Sessions(ctx, opts...) {
					<-s.Done()
				}
			})
			synctest.Wait()
		}
		campaign(ctx, "one", "ns1", "reconciler")
		campaign(ctx, "other", "ns2", "reconciler")
		campaign(ctx, "two", "ns2", "reconciler")
		short, end := context.WithCancel(ctx)
		campaign(short, "three", "ns1", "migration")
		end()
		// the first renewal comes after 3 to 12 minutes, the second 10.8 minutes after it or later
		const once = 13 * time.Minute
		time.Sleep(once)
		srv.Delete("ns1", "reconciler")
		time.Sleep(once)

		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(leaseprom.NewCollector(&monitor))
		response := httptest.NewRecorder()
		promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(response,
			httptest.NewRequest("GET", "/metrics", nil))
		if got := byChance.ReplaceAllString(response.Body.String(), "$1 …"); got != string(golden) {
			t.Errorf("answered\n%s\nwant\n%s", got, golden)
		}
		problems, err := testutil.GatherAndLint(registry)
		if err != nil || len(problems) > 0 {
			t.Errorf("promlint: %v, %v", problems, err)
		}
		cancel()
		loops.Wait()
	})
}

// Without a lease there is no series, and terms and scrapes add none.
func TestSeriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var monitor leasehold.Monitor
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(leaseprom.NewCollector(&monitor))
		series := func() int {
			n, err := testutil.GatherAndCount(registry)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := series(); n != 0 {
			t.Errorf("%d series of no lease", n)
		}
		srv := leasetest.NewServer()
		for term := range 100 { // each in the name of another identity
			for range leasehold.Sessions(t.Context(), leasehold.WithLease("reconciler"),
				leasehold.WithNamespace("default"),
				leasehold.WithIdentity(fmt.Sprint(term)), leasehold.WithClient(srv.Client("a")),
				leasehold.WithMonitor(&monitor),
				leasehold.WithLogger(slog.New(slog.DiscardHandler))) {
				if n := series(); n != 23 { // with one for each reason of losses
					t.Fatalf("%d series of one lease", n)
				}
				break
			}
		}
	})
}

// The Leases of members, whose names are new each time, make no series.
func TestSeriesOfGroupsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var monitor leasehold.Monitor
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(leaseprom.NewCollector(&monitor))
		srv := leasetest.NewServer()
		for range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			leasehold.Spread(ctx, leasehold.Keys("x"), func(s leasehold.Session, key string) error {
				n, err := testutil.GatherAndCount(registry)
				if err != nil || n != 6 {
					t.Errorf("%d series of one group, %v", n, err)
				}
				cancel()
				return nil
			}, leasehold.WithLease("workers"), leasehold.WithNamespace("default"),
				leasehold.WithClient(srv.Client("a")), leasehold.WithMonitor(&monitor),
				leasehold.WithLogger(slog.New(slog.DiscardHandler)))
			if n, err := testutil.GatherAndCount(registry); err != nil || n != 0 {
				t.Errorf("%d series of a group that the process has left, %v", n, err)
			}
		}
	})
}

// A registry that already has leader_election_master_status, as that of controller-runtime does, accepts the collector.
func TestBesideAnotherCollector(t *testing.T) {
	const help = "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates " +
		"master. " +
		"'name' is the string used to identify the lease. Please make sure to group by name."
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		theirs := prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "leader_election_master_status",
			Help: help,
		}, []string{"name"})
		theirs.WithLabelValues("theirs").Set(1)
		var monitor leasehold.Monitor
		registry.MustRegister(theirs, leaseprom.NewCollector(&monitor))
		for range leasehold.Sessions(t.Context(), leasehold.WithLease("ours"), leasehold.WithNamespace("default"),
			leasehold.WithClient(leasetest.NewServer().Client("a")), leasehold.WithMonitor(&monitor),
			leasehold.WithLogger(slog.New(slog.DiscardHandler))) {
			want := "# HELP leader_election_master_status " + help + `
# TYPE leader_election_master_status gauge
leader_election_master_status{name="ours"} 1
leader_election_master_status{name="theirs"} 1
`
			if err := testutil.GatherAndCompare(registry, strings.NewReader(want),
				"leader_election_master_status"); err != nil {
				t.Error(err)
			}
			break
		}
	})
}

// The metrics of a group are those of all members in the process.
func TestGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := leasetest.NewServer()
		ctx, cancel := context.WithCancel(t.Context())
		var monitor leasehold.Monitor
		var members sync.WaitGroup
		for _, identity := range []string{"a", "b"} {
			members.Go(func() {
				leasehold.Spread(ctx, leasehold.Keys("x", "y", "z"), func(s leasehold.Session, key string) error {
					<-s.Done()
					return nil
				}, leasehold.WithLease("workers"), leasehold.WithNamespace("default"), leasehold.WithIdentity(identity),
					leasehold.WithClient(srv.Client(identity)), leasehold.WithMonitor(&monitor),
					leasehold.WithDuration(time.Hour), leasehold.WithLogger(slog.New(slog.DiscardHandler)))
			})
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		const want = `
# HELP leasehold_keys Keys of the group, as this process sees it.
# TYPE leasehold_keys gauge
leasehold_keys{name="workers",namespace="default"} 3
# HELP leasehold_keys_moving Keys that are asked back from their owners.
# TYPE leasehold_keys_moving gauge
leasehold_keys_moving{name="workers",namespace="default"} 0
# HELP leasehold_keys_overdue Keys whose work has not returned long after its session ended; 10 at most.
# TYPE leasehold_keys_overdue gauge
leasehold_keys_overdue{name="workers",namespace="default"} 0
# HELP leasehold_keys_owned Keys that this process owns.
# TYPE leasehold_keys_owned gauge
leasehold_keys_owned{name="workers",namespace="default"} 3
# HELP leasehold_keys_unowned Keys that nobody owns.
# TYPE leasehold_keys_unowned gauge
leasehold_keys_unowned{name="workers",namespace="default"} 0
# HELP leasehold_key_sessions_total Sessions of keys that this process began.
# TYPE leasehold_key_sessions_total counter
leasehold_key_sessions_total{name="workers",namespace="default"} 3
`
		err := testutil.CollectAndCompare(leaseprom.NewCollector(&monitor), strings.NewReader(want),
			"leasehold_keys", "leasehold_keys_owned", "leasehold_keys_unowned", "leasehold_keys_moving",
			"leasehold_keys_overdue", "leasehold_key_sessions_total")
		if err != nil {
			t.Error(err)
		}
		cancel()
		members.Wait()
	})
}

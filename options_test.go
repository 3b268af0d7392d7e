package leasehold

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/leasetest"
)

const (
	subdomainRule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', " +
		"and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is " +
		`'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`
	labelRule = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', " +
		"and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for " +
		"validation is " +
		`'[a-z0-9]([-a-z0-9]*[a-z0-9])?')`
)

func TestInvalidOptions(t *testing.T) {
	var (
		x      = WithLease("x")
		client = WithClient(leasetest.NewServer().Client("a"))
	)
	const s = time.Second
	for _, tt := range []struct {
		name string
		opts []Option
		want []string // each fault, in this order
	}{
		{"no options", nil, []string{"no lease: WithLease names it"}},
		{"lease name empty", []Option{WithLease("")}, []string{"no lease: WithLease names it"}},
		{"lease name that no Lease can have", []Option{WithLease("My_Lease")},
			[]string{`lease name "My_Lease": ` + subdomainRule}},
		{"lease name too long", []Option{WithLease(strings.Repeat("x", 254))},
			[]string{`lease name "` + strings.Repeat("x", 254) + `": must be no more than 253 characters`}},
		{"namespace empty", []Option{x, WithNamespace("")}, []string{"WithNamespace: the namespace is empty"}},
		{"namespace that no namespace can have", []Option{x, WithNamespace("kube.system")},
			[]string{`namespace "kube.system": must not contain dots`}},
		{"identity empty", []Option{x, WithIdentity("")}, []string{"WithIdentity: the identity is empty"}},
		{"identity that is not UTF-8", []Option{x, WithIdentity("a\xff")},
			[]string{`identity "a\xff": want valid UTF-8, as the API server would store another`}},
		{"field manager empty", []Option{x, WithFieldManager("")},
			[]string{`field manager "": want 1 to 128 characters, not 0`}},
		{"field manager too long", []Option{x, WithFieldManager(strings.Repeat("x", 129))},
			[]string{`field manager "` + strings.Repeat("x", 129) + `": want 1 to 128 characters, not 129`}},
		{"field manager that the server refuses", []Option{x, WithFieldManager("lease\nhold")},
			[]string{`field manager "lease\nhold": want printable characters`}},
		{"create mode too small", []Option{x, WithCreateMode(-1)},
			[]string{"create mode -1: want AutoCreate, CreateNew or UseExisting"}},
		{"create mode too large", []Option{x, WithCreateMode(3)},
			[]string{"create mode 3: want AutoCreate, CreateNew or UseExisting"}},

		{"client nil", []Option{x, WithClient[Leases](nil)}, []string{"WithClient: the client is nil"}},
		{"config nil", []Option{x, WithRESTConfig(nil)}, []string{"WithRESTConfig: the config is nil"}},
		{"overrun nil", []Option{x, WithOverrun(nil)}, []string{"WithOverrun: the function is nil"}},
		{"back-off nil", []Option{x, WithBackOff(nil)}, []string{"WithBackOff: the function is nil"}},
		{"back-off that returns nil", []Option{x, WithBackOff(func() backoff.BackOff { return nil })},
			[]string{"WithBackOff: the function returns nil"}},
		{"logger nil", []Option{x, WithLogger(nil)}, []string{"WithLogger: the logger is nil"}},
		{"client and config", []Option{x, client, WithRESTConfig(&rest.Config{})},
			[]string{"WithClient and WithRESTConfig: want one of them"}},

		{"no slots", []Option{x, WithSlots(0)}, []string{"WithSlots: want 1 to 1000 slots, not 0"}},
		{"too many slots", []Option{x, WithSlots(1001)}, []string{"WithSlots: want 1 to 1000 slots, not 1001"}},
		{"slots whose last has too long a name", []Option{WithLease(strings.Repeat("x", 251)), WithSlots(11)},
			[]string{`lease name "` + strings.Repeat("x", 251) + `-10": must be no more than 253 characters`}},
		{"slots and what they exclude",
			[]Option{x, WithSlots(2), WithCreateMode(CreateNew), WithIdentity("a"), WithReclaim()},
			[]string{"WithSlots and CreateNew are mutually exclusive",
				"WithSlots and WithReclaim are mutually exclusive"}},
		{"address empty", []Option{x, WithAdvertise("")},
			[]string{`WithAdvertise: want 1 to 1024 bytes of UTF-8, not ""`}},
		{"address that is no text", []Option{x, WithAdvertise("\xff")},
			[]string{`WithAdvertise: want 1 to 1024 bytes of UTF-8, not "\xff"`}},

		{"duration too short", []Option{x, WithDuration(999 * time.Millisecond)},
			[]string{"want 1s <= duration (999ms) <= 596523h14m7s, in whole seconds"}},
		{"duration 0", []Option{x, WithDuration(0)}, []string{
			"want 1s <= duration (0s) <= 596523h14m7s, in whole seconds",
			"want 0 < renew interval (0s), 2 x interval <= renew deadline (0s)",
		}},
		{"duration negative", []Option{x, WithDuration(-15 * s)}, []string{
			"want 1s <= duration (-15s) <= 596523h14m7s, in whole seconds",
			"want 0 < renew interval (-3s), 2 x interval <= renew deadline (-12s)",
			"want renew deadline (-12s) <= 0.9 x duration (-15s)",
		}},
		{"duration not whole", []Option{x, WithDuration(1900 * time.Millisecond)},
			[]string{"want 1s <= duration (1.9s) <= 596523h14m7s, in whole seconds"}},
		{"duration too long for a Lease", []Option{x, WithDuration(1 << 31 * s)},
			[]string{"want 1s <= duration (596523h14m8s) <= 596523h14m7s, in whole seconds"}},
		{"duration as long as can be", []Option{x, WithDuration(math.MaxInt64)},
			[]string{"want 1s <= duration (2562047h47m16.854775807s) <= 596523h14m7s, in whole seconds"}},
		{"interval negative", []Option{x, WithRenewInterval(-1)},
			[]string{"want 0 < renew interval (-1ns), 2 x interval <= renew deadline (12s)"}},
		{"interval more than half of the deadline", []Option{x, WithRenewInterval(6*s + 1)},
			[]string{"want 0 < renew interval (6.000000001s), 2 x interval <= renew deadline (12s)"}},
		{"interval as long as can be", []Option{x, WithRenewInterval(math.MaxInt64)},
			[]string{"want 0 < renew interval (2562047h47m16.854775807s), 2 x interval <= renew deadline (12s)"}},
		{"deadline less than two intervals", []Option{x, WithRenewDeadline(6*s - 1)},
			[]string{"want 0 < renew interval (3s), 2 x interval <= renew deadline (5.999999999s)"}},
		{"deadline negative", []Option{x, WithRenewDeadline(-1)},
			[]string{"want 0 < renew interval (3s), 2 x interval <= renew deadline (-1ns)"}},
		{"deadline more than 0.9 of the duration", []Option{x, WithRenewDeadline(13500*time.Millisecond + 1)},
			[]string{"want renew deadline (13.500000001s) <= 0.9 x duration (15s)"}},
		{"client-go's 15/14/5, under which two lead",
			[]Option{x, WithDuration(15 * s), WithRenewDeadline(14 * s), WithRenewInterval(5 * s)},
			[]string{"want renew deadline (14s) <= 0.9 x duration (15s)"}},
		{"deadline and interval of another duration",
			[]Option{x, WithDuration(2 * s), WithRenewDeadline(10 * s), WithRenewInterval(6 * s)}, []string{
				"want 0 < renew interval (6s), 2 x interval <= renew deadline (10s)",
				"want renew deadline (10s) <= 0.9 x duration (2s)",
			}},

		{"all at once", []Option{
			WithLease("X"), WithNamespace("Y"), WithIdentity(""), WithFieldManager(""), WithLogger(nil),
			WithOverrun(nil),
			WithBackOff(nil), WithCreateMode(7), client, WithRESTConfig(&rest.Config{}),
			WithDuration(1500 * time.Millisecond), WithRenewDeadline(2 * s), WithRenewInterval(2 * s),
		}, []string{
			"WithIdentity: the identity is empty",
			"WithLogger: the logger is nil",
			"WithOverrun: the function is nil",
			"WithBackOff: the function is nil",
			`lease name "X": ` + subdomainRule,
			`namespace "Y": ` + labelRule,
			`field manager "": want 1 to 128 characters, not 0`,
			"WithClient and WithRESTConfig: want one of them",
			"create mode 7: want AutoCreate, CreateNew or UseExisting",
			"want 1s <= duration (1.5s) <= 596523h14m7s, in whole seconds",
			"want 0 < renew interval (2s), 2 x interval <= renew deadline (2s)",
			"want renew deadline (2s) <= 0.9 x duration (1.5s)",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := "leasehold: " + strings.Join(tt.want, "\n")
			if got := panicOf(func() { Sessions(t.Context(), tt.opts...) }); got == nil || got.Error() != want {
				t.Errorf("panic %v\nwant  %s", got, want)
			}
			var err error
			for range Sessions(t.Context(), append(tt.opts, WithError(&err))...) {
				t.Fatal("a session under invalid options")
			}
			if errorText(err) != want {
				t.Errorf("error %v\nwant  %s", err, want)
			}
		})
	}
}

func TestOptionNil(t *testing.T) {
	want := "leasehold: option 2 of 2 is nil\nno lease: WithLease names it"
	if got := panicOf(func() { Sessions(t.Context(), WithIdentity("a"), nil) }); got == nil || got.Error() != want {
		t.Errorf("panic %v, want %s", got, want)
	}
	want = "leasehold: option 1 of 3 is nil\noption 3 of 3 is nil\nno lease: WithLease names it"
	var err error
	for range Sessions(t.Context(), nil, WithError(&err), nil) {
		t.Fatal("a session under invalid options")
	}
	if errorText(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestContextNil(t *testing.T) {
	const want = "leasehold: the context is nil"
	var none context.Context
	if got := panicOf(func() { Sessions(none, WithLease("x")) }); got == nil || got.Error() != want {
		t.Errorf("panic %v, want %s", got, want)
	}
	var err error
	for range Sessions(none, WithLease("x"), WithError(&err)) {
		t.Fatal("a session without a context")
	}
	if errorText(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestWithErrorNil(t *testing.T) {
	const want = "leasehold: WithError: the pointer is nil"
	if got := panicOf(func() { Sessions(t.Context(), WithLease("x"), WithError(nil)) }); got == nil ||
		got.Error() != want {
		t.Errorf("panic %v, want %s", got, want)
	}
}

// The error is of the loop, not of the call: nothing happens before the sequence is ranged over.
func TestInvalidOptionsAreReportedByTheLoop(t *testing.T) {
	err := errors.New("untouched")
	seq := Sessions(t.Context(), WithError(&err))
	if err.Error() != "untouched" {
		t.Errorf("the call stored %q", err)
	}
	for range seq {
		t.Fatal("a session without a lease")
	}
	if errorText(err) != "leasehold: no lease: WithLease names it" {
		t.Errorf("the loop stored %q", err)
	}
}

// Each valid extreme leads, keeps the lease for some time and gives it back.
func TestValidOptions(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		name                         string
		opts                         []Option
		duration, deadline, interval time.Duration
	}{
		{"defaults", nil, 15 * s, 12 * s, 3 * s},
		{"defaults follow from the duration", []Option{WithDuration(60 * s)}, 60 * s, 48 * s, 12 * s},
		{"the deadline does not change the interval", []Option{WithRenewDeadline(10 * s)}, 15 * s, 10 * s, 3 * s},
		{"the interval does not change the deadline", []Option{WithRenewInterval(1 * s)}, 15 * s, 12 * s, 1 * s},
		{"0 is the default", []Option{WithRenewDeadline(0), WithRenewInterval(0)}, 15 * s, 12 * s, 3 * s},
		{"the order does not matter", []Option{WithRenewInterval(4 * s), WithDuration(20 * s)}, 20 * s, 16 * s, 4 * s},
		{"the last one counts", []Option{WithDuration(20 * s), WithDuration(10 * s)}, 10 * s, 8 * s, 2 * s},
		{"the shortest duration", []Option{WithDuration(1 * s)}, s, 800 * time.Millisecond, 200 * time.Millisecond},
		{"the longest duration", []Option{WithDuration(maxDuration)}, maxDuration, maxDuration / 10 * 8,
			maxDuration / 5},
		{"the longest of everything", []Option{WithDuration(maxDuration), WithRenewDeadline(maxDuration / 10 * 9),
			WithRenewInterval(maxDuration / 20 * 9)}, maxDuration, maxDuration / 10 * 9, maxDuration / 20 * 9},
		{"two intervals are the deadline", []Option{WithRenewInterval(6 * s)}, 15 * s, 12 * s, 6 * s},
		{"two intervals are the deadline, odd", []Option{WithDuration(s), WithRenewDeadline(801 * time.Millisecond),
			WithRenewInterval(400500 * time.Microsecond)}, s, 801 * time.Millisecond, 400500 * time.Microsecond},
		{"the deadline is 0.9 of the duration", []Option{WithRenewDeadline(13500 * time.Millisecond)}, 15 * s,
			13500 * time.Millisecond, 3 * s},
		{"kube-lease-manager's 30 s and 5 s of grace",
			[]Option{WithDuration(30 * s), WithRenewDeadline(27 * s), WithRenewInterval(13500 * time.Millisecond)},
			30 * s, 27 * s, 13500 * time.Millisecond},
		{"names as long as can be",
			[]Option{WithLease(strings.Repeat("x", 253)), WithNamespace(strings.Repeat("x", 63)),
				WithFieldManager(strings.Repeat("x", 128))}, 15 * s, 12 * s, 3 * s},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := leasetest.NewServer()
				var err error
				opts := append([]Option{WithLease("x"), WithNamespace("default"), WithClient(srv.Client("a")),
					WithError(&err), inVirtualTime, unlogged}, tt.opts...)
				o, invalid := newOptions(t.Context(), opts)
				if invalid != nil {
					t.Fatal(invalid)
				}
				if o.duration != tt.duration || o.renewDeadline != tt.deadline || o.renewInterval != tt.interval {
					t.Errorf("duration %v, renew deadline %v, renew interval %v", o.duration, o.renewDeadline,
						o.renewInterval)
				}
				led := false
				for session := range Sessions(t.Context(), opts...) {
					led = true
					if got := session.ValidFor(); got != tt.deadline {
						t.Errorf("valid for %v when acquired, want %v", got, tt.deadline)
					}
					lease := srv.Lease(session.Holder().Namespace, session.Holder().Name)
					if got := *lease.Spec.LeaseDurationSeconds; time.Duration(got)*time.Second != tt.duration {
						t.Errorf("the Lease says %d s, want %v", got, tt.duration)
					}
					time.Sleep(5 * tt.interval)
					if session.Err() != nil {
						t.Errorf("lost: %v", session.Err())
					}
					break
				}
				if !led || err != nil {
					t.Errorf("led %v, err %v", led, err)
				}
			})
		})
	}
}

func TestDefaultIdentity(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	const uuid = `_[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`
	for _, tt := range []struct{ name, pod, want string }{
		{"in a pod", "web-0", "web-0"},
		{"elsewhere", "", host},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("POD_NAME", tt.pod)
			synctest.Test(t, func(t *testing.T) {
				srv := leasetest.NewServer()
				identities := map[string]bool{}
				seq := Sessions(t.Context(), WithLease("x"), WithNamespace("default"), WithClient(srv.Client("a")),
					unlogged)
				for range 2 { // two campaigns
					sessions := 0
					identity := ""
					for s := range seq {
						identity = s.Holder().Identity
						if got := *srv.Lease("default", "x").Spec.HolderIdentity; got != identity {
							t.Errorf("the Lease names %q, the session %q", got, identity)
						}
						identities[identity] = true
						if sessions++; sessions == 2 {
							break
						}
					}
					if !regexp.MustCompile("^" + regexp.QuoteMeta(tt.want) + uuid).MatchString(identity) {
						t.Errorf("identity %q, want %s_<uuid>", identity, tt.want)
					}
				}
				if len(identities) != 2 {
					t.Errorf("identities %v, want one for each campaign", identities)
				}
			})
		})
	}
}

// inNoCluster hides whatever cluster the tests run in and near, and makes kubeconfig the content of
// the only kubeconfig; there is none when it is empty.
func inNoCluster(t *testing.T, kubeconfig string) {
	dir := t.TempDir()
	before := namespaceFile
	namespaceFile = filepath.Join(dir, "namespace")
	t.Cleanup(func() { namespaceFile = before })
	t.Setenv("HOME", dir)
	t.Setenv("KUBECONFIG", filepath.Join(dir, "config"))
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBERNETES_SERVICE_PORT", "")
	if kubeconfig == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
}

const kubeconfigOfBlue = `{
	"apiVersion": "v1", "kind": "Config", "current-context": "c",
	"contexts": [{"name": "c", "context": {"cluster": "c", "namespace": "blue"}},
		{"name": "d", "context": {"cluster": "c", "namespace": "red"}}],
	"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}]
}`

func TestDefaultNamespace(t *testing.T) {
	for _, tt := range []struct {
		name, kubeconfig, pod string
		opts                  []Option
		want                  string
	}{
		{"of the kubeconfig's context", kubeconfigOfBlue, "", nil, "blue"},
		{"of a context without one", strings.Replace(kubeconfigOfBlue, `"namespace": "blue"`, `"user": ""`, 1), "", nil,
			"default"},
		{"without a kubeconfig", "", "", nil, "default"},
		{"of the pod's service account", kubeconfigOfBlue, "white\n", nil, "white"},
		{"of a service account without one", kubeconfigOfBlue, "\n", nil, "blue"},
		{"explicit", kubeconfigOfBlue, "white", []Option{WithNamespace("green")}, "green"},
		{"explicit, so that a broken kubeconfig does not matter", "{", "", []Option{WithNamespace("green")}, "green"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNoCluster(t, tt.kubeconfig)
			if tt.pod != "" {
				if err := os.WriteFile(namespaceFile, []byte(tt.pod), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				srv := leasetest.NewServer()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := errors.New("no session")
				for s := range Sessions(ctx,
					append(tt.opts, WithLease("x"), WithClient(srv.Client("a")), WithError(&err), unlogged)...) {
					if got := s.Holder().Namespace; got != tt.want || srv.Lease(tt.want, "x") == nil {
						t.Errorf("namespace %q, want %q", got, tt.want)
					}
					break
				}
				if err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What rules a campaign out is told by WithError, or else by the log: never by a loop that runs
// zero times in silence.
func TestTerminalErrors(t *testing.T) {
	existing := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "blue", Name: "x"}}
	srv := leasetest.NewServer()
	withServer := []Option{WithNamespace("blue"), WithClient(srv.Client("a"))}
	srv.Put(existing)
	for _, tt := range []struct {
		name       string
		kubeconfig string
		opts       []Option
		want       string // a regular expression
		is         error
	}{
		{"the Lease exists", "", append(withServer, WithLease("x"), WithCreateMode(CreateNew)),
			"^leasehold: lease exists: blue/x, and CreateNew wants to create it$", ErrExists},
		{"the Lease does not exist", "", append(withServer, WithLease("y"), WithCreateMode(UseExisting)),
			"^leasehold: lease not found: blue/y, and UseExisting does not create it$", ErrNotFound},
		{"no client configuration", "", []Option{WithLease("x")},
			"^leasehold: no usable client configuration: not in a cluster, and no kubeconfig at \\$KUBECONFIG or " +
				"~/.kube/config: " +
				"use WithRESTConfig or WithClient to say which API server holds the Lease$", nil},
		{"kubeconfig unreadable, for the client", "{", []Option{WithLease("x"), WithNamespace("blue")},
			"^leasehold: no usable client configuration: error loading config file .*/config", nil},
		{"kubeconfig unreadable, for the namespace", "{", []Option{WithLease("x"), WithClient(srv.Client("a"))},
			"^leasehold: no usable client configuration: which namespace: error loading config file .*/config", nil},
		{"config that leads nowhere", "", []Option{WithLease("x"), WithRESTConfig(&rest.Config{Host: "://"})},
			"^leasehold: no usable client configuration: .*://", nil},
		{"config with a missing certificate", "", []Option{WithLease("x"), WithRESTConfig(&rest.Config{
			Host: "https://127.0.0.1:1", TLSClientConfig: rest.TLSClientConfig{CAFile: "/nonexistent/ca.crt"}})},
			"^leasehold: no usable client configuration: .*/nonexistent/ca.crt", fs.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNoCluster(t, tt.kubeconfig)
			var log bytes.Buffer
			opts := append(tt.opts, WithLogger(slog.New(slog.NewJSONHandler(&log, nil))))
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // for a campaign that goes on
			defer cancel()

			var err error
			for range Sessions(ctx, append(opts, WithError(&err))...) {
				t.Fatal("a session")
			}
			if !regexp.MustCompile(tt.want).MatchString(errorText(err)) {
				t.Errorf("error %v\nwant  %s", err, tt.want)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is no %v", err, tt.is)
			}
			if log.Len() > 0 {
				t.Errorf("logged as well as returned: %s", &log)
			}

			for range Sessions(ctx, opts...) {
				t.Fatal("a session")
			}
			var line struct{ Level, Msg, Lease, Error string }
			if json.Unmarshal(log.Bytes(), &line) != nil || line.Level != "ERROR" || line.Msg != "campaign ended" ||
				line.Lease == "" || line.Error != errorText(err) {
				t.Errorf("logged %s, want one line at ERROR with %q", &log, err)
			}
		})
	}
}

// To find no Lease is not yet to have created it.
func TestCreateNewLosesTheRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := leasetest.NewServer()
		srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" {
				srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "blue", Name: "x"}})
			}
			return leasetest.Fault{}
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var err error
		for range Sessions(ctx, WithLease("x"), WithNamespace("blue"), WithCreateMode(CreateNew),
			WithClient(srv.Client("a")),
			WithError(&err), inVirtualTime, unlogged) {
			t.Error("a session under a Lease that somebody else created")
			break
		}
		if !errors.Is(err, ErrExists) {
			t.Errorf("error %v, want %v", err, ErrExists)
		}
	})
}

// A pod that lacks its token does not go astray to whatever a kubeconfig says.
func TestNoFallbackFromABrokenPod(t *testing.T) {
	inNoCluster(t, kubeconfigOfBlue)
	t.Setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "1")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // for a campaign that goes on
	defer cancel()
	var err error
	for range Sessions(ctx, WithLease("x"), WithError(&err), unlogged) {
		t.Fatal("a session")
	}
	const want = "leasehold: no usable client configuration: open /var/run/secrets/kubernetes.io/serviceaccount/token: "
	if !strings.HasPrefix(errorText(err), want) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v\nwant  %s...", err, want)
	}
}

// The error of an earlier loop does not stay.
func TestWithErrorIsClearedByBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := errors.New("of an earlier loop")
		for range Sessions(t.Context(), WithLease("x"), WithNamespace("blue"),
			WithClient(leasetest.NewServer().Client("a")), WithError(&err), unlogged) {
			break
		}
		if err != nil {
			t.Errorf("after break: %v", err)
		}
	})
}

// When ctx ends the loop, its cause is the error. It is no line in the log: it was asked for.
func TestContextEndsTheLoop(t *testing.T) {
	srv := leasetest.NewServer()
	cause := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	var log bytes.Buffer
	opts := []Option{WithLease("x"), WithNamespace("blue"), WithClient(srv.Client("a")),
		WithLogger(slog.New(slog.NewTextHandler(&log, nil)))}

	var err error
	for range Sessions(ctx, append(opts, WithError(&err))...) {
		t.Fatal("a session after ctx has ended")
	}
	if err != cause {
		t.Errorf("err %v, want %v", err, cause)
	}
	for range Sessions(ctx, opts...) {
		t.Fatal("a session after ctx has ended")
	}
	if log.Len() > 0 {
		t.Errorf("logged %s", &log)
	}
	if srv.Lease("blue", "x") != nil {
		t.Error("the lease was taken")
	}
}

// inVirtualTime measures time by the clock of a testing/synctest bubble alone, so that a slow machine
// does not end a session early.
func inVirtualTime(o *options) { o.hooks.clock, o.hooks.memory = virtualClock{}, &leaseMemory{} }

type virtualClock struct{}

func (virtualClock) now() instant                       { return instant{time.Now(), wallTime()} }
func (virtualClock) wait(d time.Duration) time.Duration { return d }

// unlogged keeps a campaign's log out of the test's.
func unlogged(o *options) { o.log = slog.New(slog.DiscardHandler) }

// panicOf returns the error that f panics with, or nil.
func panicOf(f func()) (err error) {
	defer func() { err, _ = recover().(error) }()
	f()
	return nil
}

func errorText(err error) string {
	if err == nil {
		return "<nil>"
	}
	return err.Error()
}

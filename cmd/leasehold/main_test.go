package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/internal/annotation"
)

func TestMain(m *testing.M) {
	if isWatchdog() {
		watchdogMain()
		return
	}
	goleak.VerifyTestMain(m)
}

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; go test -update writes it. Got:\n%s", path, got)
	}
}

// call calls the tool without an API server.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	var out, err bytes.Buffer
	tool := &tool{name: "leasehold", in: strings.NewReader(""), out: &out, err: &err}
	code = tool.main(args)
	return code, out.String(), err.String()
}

func TestHelp(t *testing.T) {
	_, usage, _ := call(t, "--help")
	golden(t, "help", usage)
	for _, c := range commands() {
		_, help, _ := call(t, c.name, "--help")
		own, _, _ := strings.Cut(help, "\nCommon flags:") // kubectl's, which are client-go's to change
		golden(t, "help-"+c.name, own)
		if _, again, _ := call(t, "help", c.name); again != help {
			t.Errorf("help %s differs from %s --help", c.name, c.name)
		}
		if !strings.Contains(help, "Examples:") {
			t.Errorf("the help of %s has no examples", c.name)
		}
	}
}

func TestPlugin(t *testing.T) {
	var out bytes.Buffer
	tool := &tool{name: "kubectl-leasehold", out: &out, err: &out}
	if code := tool.main([]string{"get", "-h"}); code != 0 ||
		!strings.Contains(out.String(), "\n  kubectl leasehold get -A -l team=storage\n") {
		t.Errorf("exit code %d, help:\n%s", code, out.String())
	}
}

// Wrong usage: each call with its exit code and what it says.
func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"", 2, "Usage:"},
		{"bogus", 2, `unknown command "bogus": see "leasehold help"`},
		{"help bogus", 2, `unknown command "bogus": see "leasehold help"`},
		{"-n web bogus", 2, `unknown command "bogus"`},
		{"--bogus get", 2, `unknown command "--bogus"`},
		{"get --bogus", 2, `unknown flag: --bogus: see "leasehold get --help"`},
		{"get -o bogus", 2, "want table, wide, json, yaml, name, jsonpath="},
		{"get -o jsonpath=", 2, `missing the template after "jsonpath="`},
		{"get -o jsonpath={", 2, "unclosed action"},
		{"get -o go-template={{", 2, "unclosed action"},
		{"get -o custom-columns", 2, "want custom-columns=HEADER:PATH"},
		{"get -o custom-columns=A", 2, `custom column "A": want HEADER:PATH`},
		{"get -o jsonpath-file=missing", 2, "no such file"},
		{"watch -o wide", 2, "want table, json, yaml or name"},
		{"get -A web", 2, "--all-namespaces and the name of a lease are mutually exclusive"},
		{"get -l a=b web", 2, "--selector and the name of a lease are mutually exclusive"},
		{"get -l =", 2, "--selector: "},
		{"get --log-format xml", 2, "want text or json"},
		{"get --log-level loud", 2, "--log-level"},
		{"get", 1, "no API server: not in a cluster, and no kubeconfig"},
		{"watch --for -1s", 2, "want a positive time"},
		{"shares", 2, "missing GROUP"},
		{"spread g", 125, `missing "--" before COMMAND`},
		{"spread g --", 125, `missing COMMAND after "--"`},
		{"spread -- true", 125, "missing GROUP"},
		{"spread g -- true", 125, "want one of --keys, --keys-from and --buckets"},
		{"spread g --keys a --buckets 2 -- true", 125, "want one of --keys, --keys-from and --buckets"},
		{"spread g --buckets 0 -- true", 125, "--buckets 0: want 1 to 65536"},
		{"spread g --keys-from missing -- true", 125, "no such file"},
		{"spread g --keys a --stop-timeout 3s -- true", 125, "want 0 <= stop timeout"},
		{"spread g --keys a -- true", 125, "no API server"},
		{"shares a b", 2, "want one lease, not 2: a b"},
		{"shares a -o name", 2, "want table, json or yaml"},
		{"shares a", 1, "no API server"},
		{"watch --timeline -o json", 2, "--timeline and --output json are mutually exclusive"},
		{"claim", 2, "missing LEASE"},
		{"claim a b", 2, "want one lease, not 2: a b"},
		{"claim lease/a lease/b", 2, "want one lease, not 2"},
		{"claim A", 2, `lease name "A"`},
		{"claim pod/a", 2, `"pod/a": want NAME or lease/NAME`},
		{"claim lease/", 2, `missing the name after lease/`},
		{"get lease/a pod/b", 2, `"pod/b": want NAME or lease/NAME`},
		{"claim a -E 256", 2, "--held-exit-code 256: want 0 to 255"},
		{"claim Lease/a", 1, "no API server"},
		{"claim a --wait 1s --no-wait", 2, "--wait and --no-wait are mutually exclusive"},
		{"claim a --create sometimes", 2, "want auto, new or never"},
		{"claim a --slots 0", 2, "error: leasehold: --slots: want 1 to 1000 slots, not 0\n"},
		{"claim a --slots 2 --create new", 2, "--slots and --create=new are mutually exclusive"},
		{"claim a --slots 2 --priority 1", 2, "--slots and --priority are mutually exclusive"},
		{"claim a --advertise WithSlots" + strings.Repeat("x", 1024), 2,
			`--advertise: want 1 to 1024 bytes of UTF-8, not "WithSlotsxxx`},
		{"claim a", 1, "no API server"},
		{"release a", 2, "--identity is required"},
		{"release a --force", 2, "--force and --holder are required together"},
		{"release a --holder b", 2, "--force and --holder are required together"},
		{"release a --force --holder b -i c", 2, "--force and --identity are mutually exclusive"},
		{"create", 2, "missing LEASE"},
		{"explain a", 2, "want no arguments, not a"},
		{"explain --duration 1500ms", 2, "in whole seconds"},
		{"explain --duration 10s --renew-deadline 9500ms", 2, "want renew deadline (9.5s) <= 0.9 x duration (10s)"},
		{"explain --replicas 0", 2, "want at least 1"},
		{"report --from x --for 1m", 2, "--from renders a recording as it is"},
		{"report --from missing", 1, "no such file"},
		{"report --from -", 1, "nothing recorded"},
		{"completion fish", 2, "want bash or zsh"},
		{"run", 125, `missing "--" before COMMAND`},
		{"run a true", 125, `missing "--" before COMMAND`},
		{"run a --", 125, `missing COMMAND after "--"`},
		{"run -- true", 125, "missing LEASE"},
		{"run a b -- true", 125, "want one lease"},
		{"run a --bogus -- true", 125, "unknown flag: --bogus"},
		{"run a --duration 0s -- true", 125, "want 1s <= duration (0s)"},
		{"run a --slots 1001 -- true", 125, "error: leasehold: --slots: want 1 to 1000 slots, not 1001\n"},
		{"run a -- true", 125, "no API server"},
	} {
		t.Run(tt.args[:min(len(tt.args), 60)], func(t *testing.T) {
			code, stdout, stderr := call(t, strings.Fields(tt.args)...)
			if code != tt.code || !strings.Contains(stderr, tt.want) || stdout != "" {
				t.Errorf("exit code %d, want %d and %q; it said %q and %q", code, tt.code, tt.want, stdout, stderr)
			}
		})
	}
}

// The times of run: whether the command would be gone in time.
func TestRunOptions(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string // error, or the stop timeout
	}{
		{"", "1.5s"},
		{"--duration 60s", "6s"},
		{"--duration 30s --renew-deadline 20s", "5s"},
		{"--stop-timeout 2999ms", "2.999s"},
		{"--stop-timeout 0s", "0s"},
		{"--stop-timeout 3s",
			"want 0 <= stop timeout (3s) < duration (15s) - renew deadline (12s) = 3s, after which another can hold " +
				"the lease; a longer --duration or an earlier --renew-deadline makes room"},
		{"--stop-timeout -1s", "want 0 <= stop timeout (-1s) < duration (15s)"},
		{"--grace-period -1s", "want 0s or more"},
		{"--once --restart", "--once and --restart are mutually exclusive"},
		{"--restart --wait 1s", "--restart waits"},
		{"--restart --no-wait", "--restart waits"},
		{"--beat-file x", "--beat-file and --beat are required together"},
		{"--beat 1m", "--beat-file and --beat are required together"},
		{"--beat-file x --beat 999ms", "--beat 999ms: want at least 1s"},
		{"--beat-file x --beat 1s", "1.5s"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			var o runOptions
			flags := (&tool{}).flagSet(&command{name: "run", flags: o.flags})
			if err := flags.Parse(strings.Fields(tt.args)); err != nil {
				t.Fatal(err)
			}
			got := ""
			if err := o.complete(); err != nil {
				got = err.Error()
			} else {
				got = o.stopTimeout.String()
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// ago returns a time of a Lease.
func ago(d time.Duration) *metav1.MicroTime { return &metav1.MicroTime{Time: now.Add(-d)} }

func lease(namespace, name, holder string, acquired, renewed time.Duration, transitions int32) coordinationv1.Lease {
	l := coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name, Labels: map[string]string{"team": "storage"}, ResourceVersion: "7",
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "leasehold",
			FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:holderIdentity":{}}}`)}},
		CreationTimestamp: metav1.Time{Time: now.Add(-100 * time.Hour)},
	}}
	if holder != "" {
		l.Spec = coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: new(int32(15)),
			AcquireTime: ago(acquired), RenewTime: ago(renewed)}
	}
	l.Spec.LeaseTransitions = &transitions
	return l
}

func TestPrintLeases(t *testing.T) {
	odd := coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: "odd"},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: new("some\x1b[31mone\n")}}
	leases := []coordinationv1.Lease{
		lease("default", "backup", "", 0, 0, 3),
		lease("default", "reconciler", "reconciler-7d9f_3e096a27", 90*time.Minute, 2*time.Second, 12),
		lease("web", "cache-warmer", "warmer-0", 50*time.Hour, 40*time.Second, 1),
		lease("web", "future", "ahead", -5*time.Second, -5*time.Second, 0),
		odd,
	}
	printed := func(p printer, leases []coordinationv1.Lease, output string) string {
		t.Helper()
		if err := p.output.UnmarshalText([]byte(output)); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := p.print(&b, slices.Clone(leases), now); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	for _, f := range []string{"table", "json", "yaml", "name"} {
		golden(t, "get."+f, printed(printer{list: true}, leases[:3], f))
	}
	golden(t, "get-A.table", printed(printer{list: true, namespaces: true}, leases, "table"))
	leases = slices.Clone(leases)
	leases[1].Annotations = map[string]string{annotation.Term: annotation.FormatTerm(leases[1].Spec.AcquireTime.Time),
		annotation.Address: "10.0.0.7:8080", annotation.Priority: "-3",
		annotation.Standby: annotation.FormatStandby(leases[1].Spec.AcquireTime.Time,
			annotation.Candidate{Identity: "reconciler-5c8d_77ab", Priority: 4})}
	leases[3].Annotations = map[string]string{annotation.Term: "of another term", annotation.Address: "10.0.0.8:8080"}
	golden(t, "get-A-wide.table", printed(printer{list: true, namespaces: true}, leases, "wide"))
	golden(t, "get-one.yaml", printed(printer{}, leases[1:2], "yaml"))
	for _, tt := range []struct {
		printer printer
		output  string
		want    string
	}{
		{printer{list: true}, "jsonpath={.items[*].spec.holderIdentity}", "reconciler-7d9f_3e096a27 warmer-0"},
		{printer{}, "jsonpath={.spec.holderIdentity}{.nothing}", "reconciler-7d9f_3e096a27"},
		{printer{}, "jsonpath={.metadata.managedFields[*].manager}", "leasehold"},
		{printer{}, "jsonpath-as-json={.spec.leaseTransitions}", "[\n    12\n]\n"},
		{printer{}, "go-template={{.metadata.name}} {{.spec.leaseTransitions}}", "reconciler 12"},
		{printer{list: true}, `go-template={{range .items}}{{.metadata.name}},{{end}}`,
			"backup,reconciler,cache-warmer,"},
		{printer{list: true},
			"custom-columns=LEASE:.metadata.name,HOLDER:{.spec.holderIdentity},L:metadata.labels.team",
			"LEASE          HOLDER                     L\nbackup         <none>                     storage\n" +
				"reconciler     reconciler-7d9f_3e096a27   storage\n" +
				"cache-warmer   warmer-0                   storage\n"},
		{printer{noHeaders: true}, "custom-columns=LEASE:.metadata.name", "reconciler\n"},
		{printer{noHeaders: true}, "table", "reconciler   held   reconciler-7d9f_3e096a27   90m   2s    15s   12\n"},
	} {
		some := leases[1:2]
		if tt.printer.list {
			some = leases[:3]
		}
		if got := printed(tt.printer, some, tt.output); got != tt.want {
			t.Errorf("-o %s: %q, want %q", tt.output, got, tt.want)
		}
	}
}

// A printer that is called for each change goes on with its table.
func TestPrintAgain(t *testing.T) {
	var b bytes.Buffer
	p := printer{output: output{kind: "table"}}
	p.print(&b, []coordinationv1.Lease{lease("default", "reconciler", "reconciler-7d9f_3e096a27", time.Hour, 0, 1)},
		now)
	p.print(&b, []coordinationv1.Lease{lease("default", "reconciler", "b", time.Minute, 0, 2)}, now)
	want := "NAME         STATUS   HOLDER                     SINCE   RENEWED   DURATION   TRANSITIONS\n" +
		"reconciler   held     reconciler-7d9f_3e096a27   60m     0s        15s        1\n" +
		"reconciler   held     b                          60s     0s        15s        2\n"
	if b.String() != want {
		t.Errorf("printed\n%swant\n%s", b.String(), want)
	}
}

func TestCompletionScript(t *testing.T) {
	for _, shell := range shells {
		code, script, _ := call(t, "completion", shell)
		if code != 0 || !strings.Contains(script, "complete -o default -F _leasehold leasehold\n") {
			t.Errorf("%s: exit code %d\n%s", shell, code, script)
		}
	}
}

// Candidates that need no API server, for words as a shell passes them.
func TestComplete(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(kubeconfig,
		[]byte(`{apiVersion: v1, kind: Config, contexts: [{name: "eks:prod"}, {name: "eks:test"}, {name: local}]}`),
		0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		words []string
		want  string
	}{
		{[]string{""}, "run spread get watch claim release handover create shares explain report completion help " +
			"version :4"},
		{[]string{"re"}, "release report :4"},
		{[]string{"-n", "web", "cl"}, "claim :4"},
		{[]string{"help", "ex"}, "explain :4"},
		{[]string{"nosuch", ""}, ":4"},
		{[]string{"run", "--stop-t"}, "--stop-timeout :4"},
		{[]string{"run", "job", "--", ""}, ":0"},
		{[]string{"run", "job", "--", "get", "-"}, ":0"},
		{[]string{"completion", ""}, "bash zsh :4"},
		{[]string{"get", "-o", "js"}, "json jsonpath= jsonpath-file= jsonpath-as-json= :6"},
		{[]string{"get", "--output=ya"}, "--output=yaml :4"},
		{[]string{"get", "--output", "=", "ya"}, "yaml :4"},
		{[]string{"get", "--output", "="},
			"table wide json yaml name jsonpath= jsonpath-file= jsonpath-as-json= go-template= go-template-file= " +
				"custom-columns= custom-columns-file= :6"},
		{[]string{"watch", "-o", ""}, "table json yaml name :4"},
		{[]string{"explain", "-o", ""}, "table json yaml :4"},
		{[]string{"shares", "-o", ""}, "table json yaml :4"},
		{[]string{"claim", "--create", ""}, "auto new never :4"},
		{[]string{"get", "--log-level=d"}, "--log-level=debug :4"},
		{[]string{"report", "--html", ""}, ":0"},
		{[]string{"get", "--kubeconfig", kubeconfig, "--context", ""}, "eks:prod eks:test local :4"},
		{[]string{"get", "--kubeconfig", "=", kubeconfig, "--context", "=", "eks", ":", "p"}, "prod :4"},
		{[]string{"get", "--for"}, ":4"},
		{[]string{"get", "-n"}, ":4"},
	} {
		code, out, stderr := call(t, append([]string{completeArg}, tt.words...)...)
		if got := strings.Join(strings.Fields(out), " "); code != 0 || got != tt.want || stderr != "" {
			t.Errorf("%q: exit code %d, %s, want %s (%s)", tt.words, code, got, tt.want, stderr)
		}
	}
}

// An API server that does not answer does not keep a completion waiting.
func TestCompleteNeverHangs(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	code, out, _ := call(t, completeArg, "get", "--server=https://"+silent.Addr().String(), "")
	if code != 0 || out != ":4\n" {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// A completion takes two seconds at most, whatever it waits for.
func TestCompleteInTime(t *testing.T) {
	for _, tt := range []struct {
		name string
		find func(ctx context.Context, end <-chan struct{}) completions
		took time.Duration
		want completions
	}{
		{"at once", func(context.Context, <-chan struct{}) completions { return completions{directive: 6} }, 0,
			completions{directive: 6}},
		{"just in time", func(context.Context, <-chan struct{}) completions {
			time.Sleep(1999 * time.Millisecond)
			return completions{candidates: []string{"a"}}
		}, 1999 * time.Millisecond, completions{candidates: []string{"a"}}},
		{"until ctx ends", func(ctx context.Context, _ <-chan struct{}) completions {
			<-ctx.Done()
			return completions{directive: noFiles}
		}, 2 * time.Second, completions{directive: noFiles}},
		{"ctx is ignored", func(_ context.Context, end <-chan struct{}) completions {
			<-end
			return completions{}
		}, 2 * time.Second, completions{directive: noFiles}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				end := make(chan struct{})
				defer close(end)
				began := time.Now()
				got := inTime(func(ctx context.Context) completions { return tt.find(ctx, end) })
				if took := time.Since(began); took != tt.took || !reflect.DeepEqual(got, tt.want) {
					t.Errorf("after %v: %v, want %v after %v", took, got, tt.want, tt.took)
				}
			})
		})
	}
}

// Each command that takes the name of a lease or a group completes it, but for the one that creates it.
func TestCompleteNames(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/apis/coordination.k8s.io/v1/namespaces/web/leases" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"kind": "LeaseList", "apiVersion": "coordination.k8s.io/v1", "metadata": {},
			"items": [{"metadata": {"name": "job"}}, {"metadata": {"name": "tenants"}}]}`)
	}))
	defer server.Close()
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	complete := func(words ...string) string {
		words = slices.Insert(words, 1, "--server="+server.URL, "-n", "web")
		return strings.Join((&tool{}).candidates(t.Context(), words).candidates, " ")
	}
	for _, c := range commands() {
		if !regexp.MustCompile(`^\[?(LEASE|GROUP)\b`).MatchString(c.args) {
			continue
		}
		first, second := "job tenants", ""
		switch {
		case c.name == "create":
			first = ""
		case strings.HasPrefix(c.args, "[LEASE...]"):
			second = "tenants"
		}
		if got := complete(c.name, ""); got != first {
			t.Errorf("%s: %q, want %q", c.name, got, first)
		}
		if got := complete(c.name, "job", ""); got != second {
			t.Errorf("%s job: %q, want %q", c.name, got, second)
		}
	}
}

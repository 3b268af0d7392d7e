package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	if code := tool.main([]string{"get", "-h"}); code != 0 || !strings.Contains(out.String(), "\n  kubectl leasehold get -A -l team=storage\n") {
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
		{"bogus", 2, `no command "bogus": see "leasehold help"`},
		{"-n web bogus", 2, `no command "bogus"`},
		{"--bogus get", 2, `no command "--bogus"`},
		{"get --bogus", 2, `unknown flag: --bogus: see "leasehold get --help"`},
		{"get -o wide", 2, "want table, json, yaml or name"},
		{"get -A web", 2, "--all-namespaces and the name of a lease"},
		{"get -l a=b web", 2, "--selector and the name of a lease"},
		{"get -l =", 2, "--selector: "},
		{"get --log-format xml", 2, "want text or json"},
		{"get --log-level loud", 2, "--log-level"},
		{"get", 1, "no API server: not in a cluster, and no kubeconfig"},
		{"watch --for -1s", 2, "want a positive time"},
		{"watch --timeline -o json", 2, "--timeline and --output json"},
		{"claim", 2, "which lease?"},
		{"claim a b", 2, "want one lease, not 2: a b"},
		{"claim A", 2, `lease name "A"`},
		{"claim a --wait 1s --no-wait", 2, "--wait and --no-wait"},
		{"claim a --create sometimes", 2, "want auto, new or never"},
		{"claim a", 1, "no API server"},
		{"release a", 2, "whose lease?"},
		{"release a --force", 2, "want --force and --holder together"},
		{"release a --holder b", 2, "want --force and --holder together"},
		{"release a --force --holder b -i c", 2, "--force and --identity"},
		{"create", 2, "which lease?"},
		{"explain a", 2, "no arguments wanted: a"},
		{"explain --duration 1500ms", 2, "in whole seconds"},
		{"explain --duration 10s --renew-deadline 9500ms", 2, "want renew deadline (9.5s) <= 0.9 x duration (10s)"},
		{"explain --replicas 0", 2, "want at least 1"},
		{"report --from x --for 1m", 2, "--from renders a recording as it is"},
		{"report --from missing", 1, "no such file"},
		{"report --from -", 1, "nothing recorded"},
		{"completion fish", 2, "want bash or zsh"},
		{"run", 125, `want "--"`},
		{"run a true", 125, `want "--"`},
		{"run a --", 125, "which command?"},
		{"run -- true", 125, "which lease?"},
		{"run a b -- true", 125, "want one lease"},
		{"run a --bogus -- true", 125, "unknown flag: --bogus"},
		{"run a --duration 0s -- true", 125, "want 1s <= duration (0s)"},
		{"run a -- true", 125, "no API server"},
	} {
		t.Run(tt.args, func(t *testing.T) {
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
		{"--stop-timeout 3s", "want 0 <= stop timeout (3s) < duration (15s) - renew deadline (12s) = 3s: the lease can be somebody else's after that; a longer --duration or an earlier --renew-deadline makes room"},
		{"--stop-timeout -1s", "want 0 <= stop timeout (-1s) < duration (15s)"},
		{"--grace-period -1s", "want no negative time"},
		{"--once --restart", "--once and --restart"},
		{"--restart --wait 1s", "--restart waits"},
		{"--restart --no-wait", "--restart waits"},
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
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "leasehold"}},
	}}
	if holder != "" {
		l.Spec = coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: new(int32(15)), AcquireTime: ago(acquired), RenewTime: ago(renewed)}
	}
	l.Spec.LeaseTransitions = &transitions
	return l
}

func TestPrintLeases(t *testing.T) {
	odd := coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: "odd"}, Spec: coordinationv1.LeaseSpec{HolderIdentity: new("some\x1b[31mone\n")}}
	leases := []coordinationv1.Lease{
		lease("default", "backup", "", 0, 0, 3),
		lease("default", "reconciler", "reconciler-7d9f_3e096a27", 90*time.Minute, 2*time.Second, 12),
		lease("web", "cache-warmer", "warmer-0", 50*time.Hour, 40*time.Second, 1),
		lease("web", "future", "ahead", -5*time.Second, -5*time.Second, 0),
		odd,
	}
	for _, f := range []format{"table", "json", "yaml", "name"} {
		var b bytes.Buffer
		if err := printLeases(&b, f, leases[:3], now, false, true); err != nil {
			t.Fatal(err)
		}
		golden(t, "get."+string(f), b.String())
	}
	var b bytes.Buffer
	if err := printLeases(&b, "table", leases, now, true, true); err != nil {
		t.Fatal(err)
	}
	golden(t, "get-A.table", b.String())
	b.Reset()
	if err := printLeases(&b, "yaml", leases[1:2], now, false, false); err != nil {
		t.Fatal(err)
	}
	golden(t, "get-one.yaml", b.String())
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh"} {
		code, script, _ := call(t, "completion", shell)
		if code != 0 || !strings.Contains(script, "complete -o default -F _leasehold leasehold\n") {
			t.Errorf("%s: exit code %d\n%s", shell, code, script)
		}
		for _, c := range commands() {
			if !strings.Contains(script, fmt.Sprintf("\t%s) flags=", c.name)) {
				t.Errorf("%s does not complete %s", shell, c.name)
			}
		}
	}
}

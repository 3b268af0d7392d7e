package testbed_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// get and its kin take what kubectl takes.
func TestGet(t *testing.T) {
	c := newCLI(t)
	c.start("create", "lease/job", "--labels=team=storage").wantCode(0)
	c.start("create", "leases.coordination.k8s.io/other").wantCode(0)
	if err := os.WriteFile(filepath.Join(c.dir, "columns"),
		[]byte("LEASE TEAM\n.metadata.name .metadata.labels.team\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args, want string
	}{
		{"lease/job --no-headers", "job   free   <none>   <none>   <none>   <none>   0\n"},
		{"Leases/job -o name", "lease.coordination.k8s.io/job\n"},
		{"job -o jsonpath={.metadata.labels.team}", "storage"},
		{"-o jsonpath={.items[*].metadata.name}", "job other"},
		{"-o go-template={{range.items}}{{.metadata.name}}/{{end}}", "job/other/"},
		{"-o custom-columns=LEASE:.metadata.name,HOLDER:.spec.holderIdentity",
			"LEASE   HOLDER\njob     <none>\nother   <none>\n"},
		{"-o custom-columns-file=columns", "LEASE   TEAM\njob     storage\nother   <none>\n"},
	} {
		a := c.start(append([]string{"get"}, strings.Fields(tt.args)...)...)
		a.wantCode(0)
		if got := a.stdout.String(); got != tt.want {
			t.Errorf("get %s: %q, want %q", tt.args, got, tt.want)
		}
	}
	wide := c.start("get", "job", "-o", "wide")
	wide.wantCode(0)
	if got := wide.stdout.String(); !strings.Contains(got, "EXPIRES   AGE   MANAGER   ADDRESS   PRIORITY   NEXT\n") {
		t.Errorf("get -o wide: %s", got)
	}
	exists := c.start("claim", "job", "--create=new")
	exists.wantCode(1)
	if got := exists.stderr.String(); !strings.Contains(got, "lease exists: "+c.ns+"/job, and --create=new") {
		t.Errorf("claim --create=new: %s", got)
	}
	missing := c.start("claim", "missing", "--create=never")
	missing.wantCode(1)
	if got := missing.stderr.String(); !strings.Contains(got, "lease not found: "+c.ns+"/missing, and --create=never") {
		t.Errorf("claim --create=never: %s", got)
	}
}

// get -w shows the leases, and then each change: acquired, released and deleted, but no renewals.
func TestGetWatch(t *testing.T) {
	c := newCLI(t)
	c.start("get", "job", "-w").wantCode(1) // as kubectl does
	c.start("create", "job").wantCode(0)
	table := c.start("get", "job", "-w")
	json := c.start("get", "-w", "-o", "jsonpath={.metadata.name}:{.spec.holderIdentity} ")
	c.await("shown", func() bool { return table.stdout.String() != "" && json.stdout.String() != "" })
	claim := c.start("claim", "job", "--identity=me", "--duration=1s")
	c.await("seen", func() bool {
		return strings.Contains(table.stdout.String(), "me") && strings.Contains(json.stdout.String(), "job:me ")
	})
	renewed := func() *metav1.MicroTime {
		l, err := c.admin.Get(t.Context(), "job", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return l.Spec.RenewTime
	}
	first := renewed()
	c.await("renewed", func() bool { return renewed().After(first.Time) })
	claim.signal(syscall.SIGTERM)
	claim.wantCode(0)
	c.await("released", func() bool { return strings.HasSuffix(json.stdout.String(), " job: ") })
	if err := c.admin.Delete(t.Context(), "job", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.await("deleted", func() bool { return strings.Contains(table.stdout.String(), "missing") })
	var statuses []string
	for line := range strings.Lines(table.stdout.String()) {
		statuses = append(statuses, strings.Fields(line)[1])
	}
	if got := strings.Join(statuses, " "); got != "STATUS free held free missing" {
		t.Errorf("statuses %q:\n%s", got, table.stdout.String())
	}
	for _, a := range []*call{table, json} {
		a.signal(os.Interrupt)
		a.wantCode(0)
	}
}

// kubectl asks a plugin for completions by the name of kubectl_complete-leasehold.
func TestPluginCompletion(t *testing.T) {
	c := newCLI(t)
	c.start("create", "job").wantCode(0)
	completer := filepath.Join(c.dir, "kubectl_complete-leasehold")
	if err := os.Symlink(built.path, completer); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ args, want string }{
		{"re", "release\nreport\n:4\n"},
		{"get -n " + c.ns + " j", "job\n:4\n"},
		{"get --namespace=" + c.ns + " j", "job\n:4\n"},
		{"get --output=jsonpa", "--output=jsonpath=\n--output=jsonpath-file=\n--output=jsonpath-as-json=\n:6\n"},
	} {
		cmd := exec.Command(completer, strings.Fields(tt.args)...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+c.server.Kubeconfig())
		out, err := cmd.Output()
		if err != nil || string(out) != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.args, out, err, tt.want)
		}
	}
}

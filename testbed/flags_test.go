package testbed_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/internal/loopback"
)

// freeAddress returns an address on which no process listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := loopback.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// --context selects the server and the namespace; the other contexts of the kubeconfig have no effect.
func TestContext(t *testing.T) {
	c := newCLI(t)
	other := c.server.Namespace(t)
	c.start("create", "here").wantCode(0)
	if _, err := leases(t, c.server.Config()).Leases(other).Create(t.Context(),
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "there"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	cfg := c.server.Config()
	nobody := freeAddress(t)
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.AuthInfos["admin"] = &clientcmdapi.AuthInfo{ClientCertificateData: cfg.CertData,
		ClientKeyData: cfg.KeyData}
	kubeconfig.Clusters["up"] = &clientcmdapi.Cluster{Server: cfg.Host, CertificateAuthorityData: cfg.CAData}
	kubeconfig.Clusters["down"] = &clientcmdapi.Cluster{Server: "https://" + nobody,
		CertificateAuthorityData: cfg.CAData}
	kubeconfig.Contexts["here"] = &clientcmdapi.Context{Cluster: "up", AuthInfo: "admin", Namespace: c.ns}
	kubeconfig.Contexts["there"] = &clientcmdapi.Context{Cluster: "up", AuthInfo: "admin", Namespace: other}
	kubeconfig.Contexts["nowhere"] = &clientcmdapi.Context{Cluster: "down", AuthInfo: "admin", Namespace: c.ns}
	kubeconfig.CurrentContext = "nowhere"
	path := filepath.Join(c.dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*kubeconfig, path); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"the current one", nil, 1, nobody},
		{"of this namespace", []string{"--context=here"}, 0, "lease.coordination.k8s.io/here\n"},
		{"of another namespace", []string{"--context=there"}, 0, "lease.coordination.k8s.io/there\n"},
		{"of another server", []string{"--context=nowhere"}, 1, nobody},
		{"with a namespace of its own", []string{"--context=there", "-n", c.ns}, 0, "lease.coordination.k8s.io/here\n"},
		{"unknown", []string{"--context=elsewhere"}, 1, "error: context \"elsewhere\" does not exist\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := c.command(append([]string{"get", "-o", "name", "--kubeconfig", path}, tt.args...)...)
			out, _ := cmd.CombinedOutput()
			got, code := string(out), cmd.ProcessState.ExitCode()
			if code != tt.code || code == 0 && got != tt.want || !strings.Contains(got, tt.want) {
				t.Errorf("exit code %d, want %d; it said %q, want %q", code, tt.code, got, tt.want)
			}
		})
	}
}

// All writes of run and claim have the field manager of --field-manager: the creation of the Lease, claims, renewals
// and releases.
func TestFieldManager(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	read := func() *coordinationv1.Lease {
		l, err := c.admin.Get(t.Context(), "job", metav1.GetOptions{})
		if err != nil {
			return &coordinationv1.Lease{} // not yet
		}
		return l
	}
	for _, args := range [][]string{
		{"run", "job", "--field-manager=deployer", "--", "sleep", "600"}, // creates the Lease
		{"claim", "job", "--field-manager=deployer"},
	} {
		wantManager := func(when string) {
			t.Helper()
			managed := read().ManagedFields
			if len(managed) == 0 {
				t.Errorf("%s, %s: no field managers", args[0], when)
			}
			for _, m := range managed {
				if m.Manager != "deployer" {
					t.Errorf("%s, %s: %q manages %s", args[0], when, m.Manager, m.FieldsV1)
				}
			}
		}
		a := c.start(args...)
		c.await("renewed by "+args[0], func() bool {
			spec := read().Spec
			return spec.RenewTime != nil && spec.RenewTime.After(spec.AcquireTime.Time)
		})
		wantManager("renewed")
		a.signal(os.Interrupt)
		<-a.done
		if h := c.holder("job"); h != "" {
			t.Errorf("%s: afterwards held by %q", args[0], h)
		}
		wantManager("released")
	}
}

// The HTTP server of --listen answers a liveness probe, Prometheus and an operator.
func TestListen(t *testing.T) {
	c := newCLI(t)
	address := freeAddress(t)
	a := c.start("run", "job", "--identity=me", "--listen="+address, "--", "sh", "-c", say("started")+"exec sleep 600")
	c.pid("started")
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	if said := get(t, "http://"+address+"/healthz"); said != "ok\n" {
		t.Errorf("/healthz: %q", said)
	}
	text := get(t, "http://"+address+"/leases")
	var answer struct{ Leases []leasehold.LeaseStatus }
	if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer.Leases) != 1 {
		t.Fatalf("/leases: %v: %s", err, text)
	}
	// The alerts of docs/operations.md use these metrics.
	exposed := get(t, "http://"+address+"/metrics")
	for _, want := range []string{
		"# TYPE leasehold_leading gauge\nleasehold_leading{name=\"job\",namespace=\"" + c.ns + "\"} 1\n",
		"leader_election_master_status{name=\"job\"} 1\n", "leasehold_renewal_latency_seconds_bucket{name=\"job\"",
	} {
		if !strings.Contains(exposed, want) {
			t.Errorf("/metrics lacks %s:\n%s", want, exposed)
		}
	}
	if l := answer.Leases[0]; l.Namespace != c.ns || l.Name != "job" || l.Identity != "me" ||
		!strings.Contains(text, `"leading": true`) {
		t.Errorf("/leases: %s", text)
	}
	a.signal(os.Interrupt)
	<-a.done
}

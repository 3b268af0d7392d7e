package controlplane

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// shared is the control plane of the tests of a binary.
var shared struct {
	once   sync.Once
	server *Server // nil if it did not start
	err    error
}

// ForTest returns the control plane that all tests of a test binary share, and starts it at the first call. Each test
// takes a namespace of its own in it, and leaves it running; one that kills or pauses a control plane calls Start.
// Under -short, ForTest skips the test.
//
// The control plane ends with the test binary. A TestMain with StopAfter stops it before, and waits for that.
func ForTest(t testing.TB) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs a real API server")
	}
	shared.once.Do(func() { shared.server, shared.err = Start(t.Context(), Options{NoFsync: true}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

// Main is the argument of TestMain: a *testing.M, or what StopAfter returns.
type Main interface{ Run() int }

// StopAfter returns m with a Run that stops the control plane of ForTest after the tests, for TestMain:
//
//	goleak.VerifyTestMain(controlplane.StopAfter(m))
func StopAfter(m Main) Main { return stopAfter{m} }

type stopAfter struct{ Main }

func (m stopAfter) Run() int {
	code := m.Main.Run()
	if shared.server != nil {
		if err := shared.server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return max(code, 1)
		}
	}
	return code
}

// Namespace creates a namespace named after the test and returns its name. It is not deleted.
func (s *Server) Namespace(t testing.TB) string {
	t.Helper()
	cfg := s.Config()
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	core, err := corev1client.NewForConfigAndClient(cfg, client)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(t.Name()))
	ns, err := core.Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: name[:min(len(name), 50)] + "-"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

package testbed_test

import (
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/leasetest/conformance"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

// TestConformance asks a real API server what leasetest is asked in its own tests, in both encodings.
func TestConformance(t *testing.T) {
	t.Parallel()
	server := controlplane.ForTest(t)
	for _, encoding := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		t.Run(encoding, func(t *testing.T) {
			cfg := server.Config()
			cfg.ContentType = encoding
			client := leases(t, cfg)
			conformance.Run(t, func(t *testing.T) (coordinationv1client.LeasesGetter, string) {
				return client, server.Namespace(t)
			})
		})
	}
}

// TestExpired is the fact behind leasetest.Server.Compact, which cannot be asked of a server that has just started.
func TestExpired(t *testing.T) {
	t.Parallel()
	server := startServer(t, controlplane.Options{NoFsync: true})
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}

	w, err := leases(t, server.Config()).Leases("default").Watch(t.Context(), metav1.ListOptions{ResourceVersion: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	ev := <-w.ResultChan()
	if err := apierrors.FromObject(ev.Object); !apierrors.IsResourceExpired(err) {
		t.Errorf("got %s %v, want ERROR Expired", ev.Type, ev.Object)
	}
	if ev, ok := <-w.ResultChan(); ok {
		t.Errorf("got %s %v, want the watch closed", ev.Type, ev.Object)
	}
}

// leases returns a client whose connections are closed with the test.
func leases(t *testing.T, cfg *rest.Config) coordinationv1client.LeasesGetter {
	t.Helper()
	cfg.QPS = -1
	transport, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := coordinationv1client.NewForConfigAndClient(cfg, transport)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

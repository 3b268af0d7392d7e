package testbed_test

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasectrl"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

// leasectrl.Run starts and stops controllers of controller-runtime with leadership, as often as it comes and goes in
// one process, and nowhere else. The managers' own leader election is off.
func TestControllerRuntime(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	ctrl.SetLogger(logr.Discard())
	terms := map[string]*atomic.Int64{"one": {}, "two": {}}
	run := func(name string) (quit func()) {
		newManager := func(s leasehold.Session) (ctrl.Manager, error) {
			mgr, err := ctrl.NewManager(f.server.Config(), leasectrl.ManagerOptions(ctrl.Options{
				LeaderElection: true, LeaderElectionID: "manager", LeaderElectionNamespace: f.ns,
				Metrics:                metricsserver.Options{BindAddress: "0"},
				HealthProbeBindAddress: "0",
				Cache:                  cache.Options{DefaultNamespaces: map[string]cache.Config{f.ns: {}}},
			}))
			if err != nil {
				return nil, err
			}
			f.enter(s.FencingToken(), func() string {
				if s.Err() != nil {
					return ""
				}
				return name
			})
			mark := name + "-" + strconv.FormatInt(terms[name].Add(1), 10)
			return mgr, ctrl.NewControllerManagedBy(mgr).Named("marker").For(&corev1.ConfigMap{}).
				Complete(&marker{mgr.GetClient(), mark})
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- leasectrl.Run(ctx, newManager, leasehold.WithLease(lease), leasehold.WithNamespace(f.ns),
				leasehold.WithIdentity(name), f.asAdmin(), leasehold.WithLogger(f.logger()))
		}()
		return func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("%s ended with %v", name, err)
			}
		}
	}
	admin, err := client.New(f.server.Config(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	markedBy := func(configMap, want string) {
		t.Helper()
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: f.ns, Name: configMap}}
		if err := admin.Create(t.Context(), cm); err != nil {
			t.Fatal(err)
		}
		f.await(configMap+" marked by "+want, func() bool {
			if err := admin.Get(t.Context(), client.ObjectKeyFromObject(cm), cm); err != nil {
				t.Fatal(err)
			}
			return cm.Data["by"] == want
		})
	}

	quitOne := run("one")
	markedBy("first", "one-1")
	quitTwo := run("two")
	markedBy("second", "one-1")

	// Somebody takes the lease, for a second.
	patch := `{"spec":{"holderIdentity":"thief","leaseDurationSeconds":1,"acquireTime":"2026-01-01T00:00:00.000000Z"}}`
	if _, err := f.admin.Patch(t.Context(), lease, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	f.await("led again", func() bool { return f.sessions.Load() >= 2 && f.leader() != "" })

	// Those that are left lead, more than once.
	if f.leader() == "one" {
		quitTwo()
		markedBy("third", "one-2")
		quitOne()
	} else {
		markedBy("third", "two-1")
		quitTwo()
		markedBy("fourth", "one-2")
		quitOne()
	}
	list, err := f.admin.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 || list.Items[0].Spec.HolderIdentity != nil {
		t.Errorf("want one Lease, released, and none of the managers' own: %+v", list.Items)
	}
}

// A marker writes who reconciles into ConfigMaps.
type marker struct {
	client.Client
	by string
}

func (m *marker) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var cm corev1.ConfigMap
	if err := m.Get(ctx, req.NamespacedName, &cm); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if cm.Data["by"] != "" {
		return ctrl.Result{}, nil
	}
	cm.Data = map[string]string{"by": m.by}
	return ctrl.Result{}, m.Update(ctx, &cm)
}

package testbed_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leaseprom"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

// observe serves /metrics and /leases of a process, and returns its address.
func observe(t *testing.T, monitor *leasehold.Monitor) string {
	registry := prometheus.NewRegistry()
	registry.MustRegister(leaseprom.NewCollector(monitor))
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.Handle("/leases", monitor)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

func get(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatal(response.Status, err)
	}
	return string(text)
}

// A handover as the Monitors, and the metrics, of both processes show it.
func TestMonitorHandover(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	var monitors [2]leasehold.Monitor
	one, two := observe(t, &monitors[0]), observe(t, &monitors[1])
	shown := func(url string) leasehold.LeaseStatus {
		t.Helper()
		var answer struct{ Leases []leasehold.LeaseStatus }
		if err := json.Unmarshal([]byte(get(t, url+"/leases")), &answer); err != nil {
			t.Fatal(err)
		}
		if len(answer.Leases) != 1 {
			return leasehold.LeaseStatus{}
		}
		return answer.Leases[0]
	}
	series := func(url, name string, value float64) {
		t.Helper()
		line := fmt.Sprintf(`%s{name="reconciler",namespace="%s"} %v`, name, f.ns, value)
		if text := get(t, url+"/metrics"); !strings.Contains(text, line+"\n") {
			t.Errorf("no %s in\n%s", line, text)
		}
	}
	first := f.run("one", nil, f.asAdmin(), leasehold.WithMonitor(&monitors[0]))
	f.awaitLeader("one")
	f.run("two", nil, f.asAdmin(), leasehold.WithMonitor(&monitors[1]))
	f.await("followed by two, and renewed by one", func() bool {
		s := shown(two)
		return s.Following == "watch" && s.Holder != nil && s.Holder.Identity == "one" && shown(one).Renewals > 0
	})
	series(one, "leasehold_leading", 1)
	series(two, "leasehold_leading", 0)
	series(two, "leasehold_claimed", 1)

	first.quit()
	f.awaitLeader("two")
	if s := shown(two); !s.Leading || s.FencingToken == 0 || s.Sessions != 1 || s.Holder.Identity != "two" ||
		s.Holder.Transitions != 1 || s.ValidForSeconds <= 10 {
		t.Errorf("two: %+v", s)
	}
	if s := shown(one); s.Leading || s.Campaigning || s.Renewals != s.RenewalLatency.Count ||
		s.RenewalLatency.SumSeconds <= 0 {
		t.Errorf("one: %+v", s)
	}
	series(one, "leasehold_leading", 0)
	series(one, "leasehold_campaigning", 0)
	series(two, "leasehold_leading", 1)
	series(two, "leasehold_transitions", 1)
	for i := range monitors {
		if err := monitors[i].Check(nil); err != nil {
			t.Error(err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// Events as the API server keeps them, and kubectl describe shows them.
func TestEvents(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	core, err := corev1client.NewForConfig(f.server.Config())
	if err != nil {
		t.Fatal(err)
	}
	f.Cleanup(core.RESTClient().(*rest.RESTClient).Client.CloseIdleConnections)
	broadcaster := record.NewBroadcaster()
	f.Cleanup(broadcaster.Shutdown)
	broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: core.Events("")})
	recorder := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "test"})

	c := f.run("one", nil, f.asAdmin(), leasehold.WithEventRecorder(recorder))
	f.awaitLeader("one")
	uid := f.get().UID
	c.quit()
	var events []corev1.Event
	f.await("told", func() bool {
		list, err := core.Events(f.ns).List(t.Context(),
			metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(uid)})
		if err != nil {
			t.Fatal(err)
		}
		events = list.Items
		return len(events) == 2
	})
	said := map[string]bool{}
	for _, e := range events {
		said[e.Message] = true
		if o := e.InvolvedObject; e.Type != "Normal" || e.Reason != "LeaderElection" ||
			o.APIVersion != "coordination.k8s.io/v1" || o.Kind != "Lease" || o.Namespace != f.ns || o.Name != lease {
			t.Errorf("event %s %s about %+v", e.Type, e.Reason, o)
		}
	}
	if !said["one became leader"] || !said["one stopped leading"] {
		t.Errorf("events %v", said)
	}
}

package testbed_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

// A crowd is many leases in one process, whose connections and watches are counted.
type crowd struct {
	*fleet
	config  *rest.Config
	hole    blackHole
	watches atomic.Int64 // open
	wide    atomic.Int64 // opened for the whole namespace
	ended   atomic.Int64 // sessions
	monitor leasehold.Monitor
	ctx     context.Context
	leave   context.CancelFunc
	loops   sync.WaitGroup
}

func newCrowd(f *fleet, config *rest.Config) *crowd {
	c := &crowd{fleet: f, config: config}
	c.config.Dial = c.hole.dial
	c.config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return watchCounter{next, c}
	})
	c.ctx, c.leave = context.WithCancel(f.Context())
	f.Cleanup(c.quit)
	return c
}

// A watchCounter counts watches until their bodies are closed.
type watchCounter struct {
	http.RoundTripper
	crowd *crowd
}

func (w watchCounter) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := w.RoundTripper.RoundTrip(req)
	if query := req.URL.Query(); err == nil && resp.StatusCode == http.StatusOK && query.Get("watch") != "" {
		if query.Get("fieldSelector") == "" {
			w.crowd.wide.Add(1)
		}
		w.crowd.watches.Add(1)
		resp.Body = &countedBody{resp.Body, sync.OnceFunc(func() { w.crowd.watches.Add(-1) })}
	}
	return resp, err
}

type countedBody struct {
	body interface {
		Read([]byte) (int, error)
		Close() error
	}
	end func()
}

func (b *countedBody) Read(p []byte) (int, error) { return b.body.Read(p) }
func (b *countedBody) Close() error               { b.end(); return b.body.Close() }

// lead campaigns for n leases, and returns when all are led.
func (c *crowd) lead(n int) {
	for i := range n {
		c.loops.Go(func() {
			for s := range leasehold.Sessions(c.ctx, leasehold.WithLease(fmt.Sprint("lease-", i)),
				leasehold.WithNamespace(c.ns),
				leasehold.WithRESTConfig(c.config), leasehold.WithMonitor(&c.monitor),
				leasehold.WithLogger(c.logger())) {
				<-s.Done()
				c.ended.Add(1)
			}
		})
	}
	c.await("led", func() bool { return c.leading() == n })
}

func (c *crowd) leading() (n int) {
	for _, s := range c.monitor.Leases() {
		if s.Leading {
			n++
		}
	}
	return n
}

// followed returns how many leases are followed in a way.
func (c *crowd) followed(by string) (n int) {
	for _, s := range c.monitor.Leases() {
		if s.Following == by {
			n++
		}
	}
	return n
}

func (c *crowd) quit() {
	c.leave()
	c.loops.Wait()
}

// A hundred leases in one process share a connection and a watch, also after the connection stopped to
// carry anything, which none of them notices; and leave neither.
func TestManyLeases(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	c := newCrowd(f, f.server.Config())
	c.lead(100)
	c.await("followed by one watch", func() bool { return c.followed("shared watch") == 100 && c.watches.Load() == 1 })
	if n := c.hole.dials.Load(); n != 1 {
		t.Errorf("%d connections were opened, want 1", n)
	}
	time.Sleep(4 * time.Second) // all are renewed at least once
	c.hole.swallow()
	time.Sleep(12*time.Second + time.Second) // the renew deadline
	if led, ended := c.leading(), c.ended.Load(); led != 100 || ended > 0 {
		t.Errorf("%d leases are led, and %d sessions have ended", led, ended)
	}
	if n := c.hole.dials.Load(); n < 2 || n > 4 {
		t.Errorf("%d connections, want one more", n)
	}
	c.await("followed by one watch again", func() bool { return c.watches.Load() == 1 })
	c.quit()
	if n := c.watches.Load(); n != 0 {
		t.Errorf("%d watches are left", n)
	}
}

// Who may watch leases by their names alone has a watch for each, and is told once what would help.
func TestManyLeasesByName(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	rbac, err := rbacv1client.NewForConfig(f.server.Config())
	if err != nil {
		t.Fatal(err)
	}
	f.Cleanup(rbac.RESTClient().(*rest.RESTClient).Client.CloseIdleConnections)
	const n = 150 // more watches than a connection carries
	user := "crowd-in-" + f.ns
	var names []string
	for i := range n {
		names = append(names, fmt.Sprint("lease-", i))
	}
	if _, err := rbac.Roles(f.ns).Create(t.Context(), &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "crowd"},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, ResourceNames: names,
				Verbs: []string{"get", "watch", "patch"}},
			{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"create"}},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.RoleBindings(f.ns).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "crowd"},
		Subjects:   []rbacv1.Subject{{Kind: "User", APIGroup: "rbac.authorization.k8s.io", Name: user}},
		RoleRef:    rbacv1.RoleRef{Kind: "Role", APIGroup: "rbac.authorization.k8s.io", Name: "crowd"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // for the server to know of the role
	c := newCrowd(f, f.server.UserConfig(user))
	c.lead(n)
	c.await("followed each by a watch", func() bool { return c.followed("watch") == n && c.watches.Load() == n })
	time.Sleep(4 * time.Second) // all are renewed beside the watches
	if led, ended := c.leading(), c.ended.Load(); led != n || ended > 0 {
		t.Errorf("%d leases are led, and %d sessions have ended", led, ended)
	}
	if n := c.wide.Load(); n != 0 {
		t.Errorf("%d watches of the namespace were allowed", n)
	}
	if n := c.hole.dials.Load(); n > 5 {
		t.Errorf("%d connections", n)
	}
	rule := fmt.Sprintf(`each Lease is followed by a watch of its own instead; `+
		`a Role in namespace \"%s\" needs the rule`, f.ns)
	if n := strings.Count(f.log.String(), rule); n != 1 {
		t.Errorf("the rule is named %d times", n)
	}
}

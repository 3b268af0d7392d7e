package leasehold

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/internal/rights"
)

// A groupClient makes the requests about the Leases of a group, other than those of a member about its own.
type groupClient struct {
	campaign *campaign
	group    string // the name of the group, and of the Lease that has its table
}

// A lister is a client of Leases that can list them. All typed clients can.
type lister interface {
	List(ctx context.Context, opts metav1.ListOptions) (*coordinationv1.LeaseList, error)
}

var errNoList = groupFault{"list", "the client given by WithClient has no method List"}

// groupRequest makes one request, of a kind, in bounded time.
func groupRequest[T any](
	ctx context.Context, g *groupClient, kind, verb string, request func(context.Context) (T, error),
) (T, error) {
	c := g.campaign
	done, err := c.client.permit(ctx)
	if err != nil {
		return *new(T), err
	}
	defer done()
	timeout := c.acquireTimeout.current()
	ctx, cancel := context.WithTimeout(ctx, c.clock.wait(timeout))
	defer cancel()
	v, err := ask(ctx, c.user, kind, timeout, request, nil)
	if err != nil {
		if rights.Missing(err, verb) {
			err = rights.Rule(err, c.lease.namespace, "", verb)
		}
		err = fmt.Errorf("%s of group %s/%s: %w", kind, c.lease.namespace, g.group, err)
	}
	c.lease.failures.record(kind, err)
	return v, err
}

// get returns the Lease with a name; nil if there is none.
func (g *groupClient) get(ctx context.Context, kind, name string) (*coordinationv1.Lease, error) {
	lease, err := groupRequest(ctx, g, kind, "get", func(ctx context.Context) (*coordinationv1.Lease, error) {
		return resultOf(g.campaign.lease.leases.Get(ctx, name, metav1.GetOptions{}))
	})
	if leaseNotFound(err) {
		return nil, nil
	}
	return lease, err
}

// list returns the Leases of the group, as far as they have its label, and the version of the list.
func (g *groupClient) list(ctx context.Context) ([]*coordinationv1.Lease, uint64, error) {
	return g.listBy(ctx, g.selector())
}

// listUnlabelled returns the Leases of the group and, of all Leases of the namespace, those of members whose label
// somebody has removed or changed.
func (g *groupClient) listUnlabelled(ctx context.Context) ([]*coordinationv1.Lease, uint64, error) {
	leases, version, err := g.listBy(ctx, "")
	return slices.DeleteFunc(leases, func(l *coordinationv1.Lease) bool {
		member := isMemberName(l.Name, g.group) && l.Annotations[memberAnnotation] != ""
		return l.Labels[groupLabel] != g.group && !member
	}), version, err
}

// listBy returns the Leases of the namespace that a selector selects, and the version of the list.
func (g *groupClient) listBy(ctx context.Context, selector string) ([]*coordinationv1.Lease, uint64, error) {
	from, ok := g.campaign.lease.leases.(lister)
	if !ok {
		return nil, 0, errNoList
	}
	list, err := groupRequest(ctx, g, "list", "list", func(ctx context.Context) (*coordinationv1.LeaseList, error) {
		return resultOf(from.List(ctx, metav1.ListOptions{LabelSelector: selector}))
	})
	if err != nil {
		return nil, 0, err
	}
	version, err := strconv.ParseUint(list.ResourceVersion, 10, 64)
	if err != nil {
		return nil, 0, fmt.Errorf("the server sent a list with resourceVersion %q, want a number", list.ResourceVersion)
	}
	leases := make([]*coordinationv1.Lease, len(list.Items))
	for i := range list.Items {
		leases[i] = &list.Items[i]
	}
	return leases, version, nil
}

// tableHolder returns who holds the Lease that has the table: no candidate.
func (g *groupClient) tableHolder() string { return "leasehold group " + g.group }

func (g *groupClient) selector() string { return labels.Set{groupLabel: g.group}.String() }

// create makes a Lease of the group.
func (g *groupClient) create(
	ctx context.Context, kind string, lease *coordinationv1.Lease,
) (*coordinationv1.Lease, error) {
	lease.Namespace = g.campaign.lease.namespace
	lease.Labels = withGroupLabel(g.campaign.options.labels, g.group)
	return groupRequest(ctx, g, kind, "create", func(ctx context.Context) (*coordinationv1.Lease, error) {
		return resultOf(g.campaign.lease.leases.Create(ctx, lease,
			metav1.CreateOptions{FieldManager: g.campaign.lease.fieldManager}))
	})
}

// patch changes annotations and, unless it is nil, spec, of a Lease of the group if it still is as r.
func (g *groupClient) patch(
	ctx context.Context, kind, name string, r record, annotations map[string]*string, spec any,
) (*coordinationv1.Lease, error) {
	body, err := mergePatch(r, annotations, withGroupLabel(nil, g.group), spec)
	if err != nil {
		return nil, err
	}
	l := g.campaign.lease
	return groupRequest(ctx, g, kind, "patch", func(ctx context.Context) (*coordinationv1.Lease, error) {
		return resultOf(l.leases.Patch(ctx, name, types.MergePatchType, body,
			metav1.PatchOptions{FieldManager: l.fieldManager}))
	})
}

// delete deletes a Lease of the group if it still is as r.
func (g *groupClient) delete(ctx context.Context, kind, name string, r record) error {
	_, err := groupRequest(ctx, g, kind, "delete", func(ctx context.Context) (struct{}, error) {
		unchanged := &metav1.Preconditions{UID: &r.uid, ResourceVersion: new(r.resourceVersion())}
		return struct{}{}, g.campaign.lease.leases.Delete(ctx, name, metav1.DeleteOptions{Preconditions: unchanged})
	})
	return err
}

// An audience is told what the Leases of a selection are. Its methods are called by one goroutine.
type audience interface {
	// setAll says that the selection has exactly these Leases as of version; 0 if that is not known.
	setAll(leases []*coordinationv1.Lease, version uint64)
	// update says what one of them is now, or, if deleted, what it was at the end.
	update(lease *coordinationv1.Lease, deleted bool)
}

// follow tells a what the Lease with a name, or all Leases of the group if that is empty, are, until ctx ends. It reads
// them and watches; where it may not watch it reads every renew interval. After failures it pauses by delays.
func (g *groupClient) follow(ctx context.Context, kind, name string, delays *delays, a audience) {
	c := g.campaign
	delays.reset()
	var pollUntil time.Time
	for ctx.Err() == nil {
		began := c.clock.now().mono
		err := g.read(ctx, kind, name, a, func(from uint64) error {
			if began.Before(pollUntil) {
				sleep(ctx, c.clock, c.options.renewInterval)
				return nil
			}
			err := g.watch(ctx, kind+" watch", name, from, a)
			if err != nil && refused(err) {
				pollUntil = began.Add(refusedWatchPause(c.options.renewInterval))
			}
			return err
		})
		if err == nil && c.clock.now().mono.Sub(began) >= c.options.renewInterval {
			delays.reset()
			continue
		}
		sleep(ctx, c.clock, delays.next(err, c.options.renewInterval))
	}
}

// read reads the selection, tells a of it, and goes on with the version from which on it is to be watched; 0 if the
// watch is to begin with what is there.
func (g *groupClient) read(ctx context.Context, kind, name string, a audience, goOn func(from uint64) error) error {
	if name == "" {
		leases, version, err := g.list(ctx)
		if err != nil {
			return err
		}
		a.setAll(leases, version)
		return goOn(version)
	}
	lease, err := g.get(ctx, kind, name)
	if err != nil {
		return err
	}
	if lease == nil {
		a.setAll(nil, 0)
		return goOn(0)
	}
	r, err := readRecord(lease)
	if err != nil {
		return err
	}
	a.setAll([]*coordinationv1.Lease{lease}, r.version)
	// The server may not know any more what happened since the Lease changed: the watch begins with what it is.
	return goOn(0)
}

// watch tells a of events until the watch ends.
func (g *groupClient) watch(ctx context.Context, kind, name string, from uint64, a audience) error {
	c := g.campaign
	opts := metav1.ListOptions{LabelSelector: g.selector()}
	if name != "" {
		opts = metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()}
	}
	if from != 0 {
		opts.ResourceVersion = strconv.FormatUint(from, 10)
	}
	timeout := c.acquireTimeout.current()
	w, err := openWatch(ctx, c.user, c.clock, timeout, func(ctx context.Context) (watch.Interface, error) {
		return c.lease.leases.Watch(ctx, opts)
	})
	if err != nil && rights.Missing(err, "watch") {
		err = rights.Rule(err, c.lease.namespace, "", "watch")
	}
	c.lease.failures.record(kind, err)
	if err != nil {
		return err
	}
	defer w.Stop()
	for {
		select {
		case event, open := <-w.ResultChan():
			if !open {
				return nil
			}
			lease, ok := event.Object.(*coordinationv1.Lease)
			switch {
			case event.Type == watch.Error:
				return watchError(event)
			case ok && lease != nil && event.Type != watch.Bookmark:
				a.update(lease, event.Type == watch.Deleted)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

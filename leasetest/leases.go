package leasetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1apply "k8s.io/client-go/applyconfigurations/coordination/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// leases is a client's view of one namespace. Each method checks what client-go checks before it sends, and leaves
// the rest to the server.
type leases struct {
	coordinationv1client.LeaseExpansion
	client    *Client
	namespace string
}

func (l *leases) key(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: l.namespace, Name: name}
}

func (l *leases) request(verb, name string) Request {
	return Request{Verb: verb, Namespace: l.namespace, Name: name}
}

func (l *leases) writer(manager string, dryRun []string) writer {
	if manager == "" {
		manager = l.client.name
	}
	return writer{client: l.client.name, manager: manager, dryRun: len(dryRun) > 0}
}

// Create implements LeaseInterface.
func (l *leases) Create(
	ctx context.Context, lease *coordinationv1.Lease, opts metav1.CreateOptions,
) (*coordinationv1.Lease, error) {
	if lease == nil {
		return nil, errors.New("lease must not be nil")
	}
	if l.namespace == "" {
		return empty(errors.New("an empty namespace may not be set during creation"))
	}
	lease = lease.DeepCopy()
	r := l.request("create", lease.Name)
	r.Lease = lease
	return answer(exchange(ctx, l.client, r, func() (*coordinationv1.Lease, error) {
		return l.client.server.create(l.writer(opts.FieldManager, opts.DryRun), l.namespace, lease, opts)
	}))
}

// Update implements LeaseInterface.
func (l *leases) Update(
	ctx context.Context, lease *coordinationv1.Lease, opts metav1.UpdateOptions,
) (*coordinationv1.Lease, error) {
	if lease == nil {
		return nil, errors.New("lease must not be nil")
	}
	if err := l.checkName(lease.Name); err != nil {
		return empty(err)
	}
	lease = lease.DeepCopy()
	r := l.request("update", lease.Name)
	r.Lease = lease
	return answer(exchange(ctx, l.client, r, func() (*coordinationv1.Lease, error) {
		return l.client.server.replace(l.writer(opts.FieldManager, opts.DryRun), l.key(lease.Name), lease, opts)
	}))
}

// Delete implements LeaseInterface.
func (l *leases) Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error {
	if err := l.checkName(name); err != nil {
		return err
	}
	_, err := exchange(ctx, l.client, l.request("delete", name), func() (struct{}, error) {
		return struct{}{}, l.client.server.delete(l.writer("", opts.DryRun), l.key(name), opts)
	})
	return err
}

// DeleteCollection implements LeaseInterface.
func (l *leases) DeleteCollection(ctx context.Context, opts metav1.DeleteOptions, listOpts metav1.ListOptions) error {
	_, err := exchange(ctx, l.client, l.request("deletecollection", ""), func() (struct{}, error) {
		return struct{}{}, l.client.server.deleteAll(l.writer("", opts.DryRun), l.namespace, opts, listOpts)
	})
	return err
}

// Get implements LeaseInterface. It answers with the newest state whatever resourceVersion the options ask for.
func (l *leases) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	if err := l.checkName(name); err != nil {
		return empty(err)
	}
	return answer(exchange(ctx, l.client, l.request("get", name), func() (*coordinationv1.Lease, error) {
		if lease := l.client.server.Lease(l.namespace, name); lease != nil {
			return lease, nil
		}
		return nil, apierrors.NewNotFound(leasesResource, name)
	}))
}

// List implements LeaseInterface. It answers with the newest state, all of it.
func (l *leases) List(ctx context.Context, opts metav1.ListOptions) (*coordinationv1.LeaseList, error) {
	list, err := exchange(ctx, l.client, l.request("list", selectedName(opts)),
		func() (*coordinationv1.LeaseList, error) {
			return l.client.server.list(l.namespace, opts)
		})
	if err != nil {
		return &coordinationv1.LeaseList{}, err
	}
	return list, nil
}

// Watch implements LeaseInterface. The watch ends with ctx, at Stop, at TimeoutSeconds, when the test closes it, and
// when its reader is too slow.
func (l *leases) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	return exchange(ctx, l.client, l.request("watch", selectedName(opts)), func() (watch.Interface, error) {
		return l.client.server.watch(ctx, l.client, l.namespace, opts)
	})
}

// Patch implements LeaseInterface for merge, strategic merge and apply patches.
func (l *leases) Patch(
	ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, subresources ...string,
) (*coordinationv1.Lease, error) {
	if err := l.checkName(name); err != nil {
		return empty(err)
	}
	r := l.request("patch", name)
	if pt == types.ApplyYAMLPatchType {
		r.Verb = "apply"
	}
	r.Body = data
	return answer(exchange(ctx, l.client, r, func() (*coordinationv1.Lease, error) {
		if len(subresources) > 0 {
			return nil, apierrors.NewGenericServerResponse(404, "patch", leasesResource, name, "", 0, false)
		}
		return l.client.server.patch(l.writer(opts.FieldManager, opts.DryRun), l.key(name), pt, data, opts)
	}))
}

// Apply implements LeaseInterface.
func (l *leases) Apply(
	ctx context.Context, lease *coordinationv1apply.LeaseApplyConfiguration, opts metav1.ApplyOptions,
) (*coordinationv1.Lease, error) {
	if lease == nil {
		return nil, errors.New("object provided to Apply must not be nil")
	}
	if lease.Name == nil {
		return nil, errors.New("obj.Name must be provided to Apply")
	}
	data, err := json.Marshal(lease)
	if err != nil {
		return nil, err
	}
	return l.Patch(ctx, *lease.Name, types.ApplyYAMLPatchType, data, opts.ToPatchOptions())
}

// selectedName returns the name that a list or watch is limited to, or "".
func selectedName(opts metav1.ListOptions) string {
	selector, err := fields.ParseSelector(opts.FieldSelector)
	if err != nil {
		return ""
	}
	name, _ := selector.RequiresExactMatch("metadata.name")
	return name
}

func (l *leases) checkName(name string) error {
	if name == "" {
		return errors.New("resource name may not be empty")
	}
	if msgs := content.IsPathSegmentName(name); len(msgs) > 0 {
		return fmt.Errorf("invalid resource name %q: %v", name, msgs)
	}
	return nil
}

// answer returns the lease as client-go returns it: a copy, or an empty Lease beside an error.
func answer(lease *coordinationv1.Lease, err error) (*coordinationv1.Lease, error) {
	if err != nil {
		return empty(err)
	}
	return lease.DeepCopy(), nil
}

func empty(err error) (*coordinationv1.Lease, error) { return &coordinationv1.Lease{}, err }

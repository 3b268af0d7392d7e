package leasetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	k8sjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func (s *Server) patch(
	w writer, key types.NamespacedName, pt types.PatchType, data []byte, opts metav1.PatchOptions,
) (*coordinationv1.Lease, error) {
	var makeDraft func(*record) (draft, error)
	switch pt {
	case types.MergePatchType:
		makeDraft = func(r *record) (draft, error) { return mergePatch(r.lease, data, opts.FieldValidation) }
	case types.StrategicMergePatchType:
		makeDraft = func(r *record) (draft, error) { return strategicPatch(r.lease, data, opts.FieldValidation) }
	case types.ApplyYAMLPatchType:
	default:
		return nil, &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusUnsupportedMediaType,
			Reason: metav1.StatusReasonUnsupportedMediaType,
			Message: fmt.Sprintf("the body of the request was in an unknown format - leasetest accepts: %s, %s, %s",
				types.MergePatchType, types.StrategicMergePatchType, types.ApplyYAMLPatchType),
		}}
	}
	if errs := validation.ValidatePatchOptions(&opts, pt); len(errs) > 0 {
		return nil, invalidOptions("PatchOptions", errs)
	}
	if pt == types.ApplyYAMLPatchType {
		force := opts.Force != nil && *opts.Force
		return s.update(w, key, "", func(r *record) (draft, error) { return applyPatch(r, data, w.manager, force) })
	}
	return s.update(w, key, "", func(r *record) (draft, error) {
		if r.lease.UID == "" {
			return draft{}, apierrors.NewNotFound(leasesResource, key.Name)
		}
		return makeDraft(r)
	})
}

// plainPatch is a merge patch or an applied configuration that touches nothing but plain fields of the spec, labels and
// annotations, apart from conditions. Nearly all patches are, and they need no detour by JSON of the whole lease.
type plainPatch struct {
	meta        struct{ name, namespace, uid, resourceVersion string }
	labels      map[string]*string // nil is to remove one
	annotations map[string]*string
	spec        coordinationv1.LeaseSpec
	set         specFields // to the values in spec
	null        specFields // to nothing
}

// specOnly reports whether it touches plain fields of the spec alone.
func (p *plainPatch) specOnly() bool { return p.labels == nil && p.annotations == nil }

func parsePlainPatch(data []byte) (p plainPatch, ok bool) {
	var body map[string]json.RawMessage
	if json.Unmarshal(data, &body) != nil || body == nil {
		return p, false
	}
	for key, value := range body {
		switch key {
		case "apiVersion", "kind":
			want := map[string]string{"apiVersion": `"coordination.k8s.io/v1"`, "kind": `"Lease"`}
			ok = string(value) == want[key]
		case "metadata":
			ok = p.parseMetadata(value)
		case "spec":
			ok = p.parseSpec(value)
		default:
			ok = false
		}
		if !ok {
			return p, false
		}
	}
	return p, true
}

func (p *plainPatch) parseMetadata(data []byte) bool {
	var meta map[string]json.RawMessage
	if json.Unmarshal(data, &meta) != nil || meta == nil {
		return false
	}
	for key, value := range meta {
		var text *string
		switch key {
		case "labels":
			if json.Unmarshal(value, &p.labels) != nil || p.labels == nil {
				return false
			}
			continue
		case "annotations":
			if json.Unmarshal(value, &p.annotations) != nil || p.annotations == nil {
				return false
			}
			continue
		case "name":
			text = &p.meta.name
		case "namespace":
			text = &p.meta.namespace
		case "uid":
			text = &p.meta.uid
		case "resourceVersion":
			text = &p.meta.resourceVersion
		default:
			return false
		}
		if json.Unmarshal(value, text) != nil || *text == "" {
			return false
		}
	}
	return true
}

func (p *plainPatch) parseSpec(data []byte) bool {
	var spec map[string]json.RawMessage
	if json.Unmarshal(data, &spec) != nil || spec == nil {
		return false
	}
	for name, value := range spec {
		f, ok := specField(name)
		if !ok {
			return false
		}
		if string(value) == "null" {
			p.null |= f
			continue
		}
		p.set |= f
		var err error
		switch f {
		case acquireTime:
			p.spec.AcquireTime, err = parseTime(value)
		case renewTime:
			p.spec.RenewTime, err = parseTime(value)
		case holderIdentity:
			err = json.Unmarshal(value, &p.spec.HolderIdentity)
		case leaseDurationSeconds:
			err = json.Unmarshal(value, &p.spec.LeaseDurationSeconds)
		case leaseTransitions:
			err = json.Unmarshal(value, &p.spec.LeaseTransitions)
		}
		if err != nil {
			return false
		}
	}
	return true
}

// parseTime accepts a time only in the form that the server itself would give it.
func parseTime(data []byte) (*metav1.MicroTime, error) {
	t := &metav1.MicroTime{}
	if err := json.Unmarshal(data, t); err != nil {
		return nil, err
	}
	if again, err := t.MarshalJSON(); err != nil || !bytes.Equal(again, data) {
		return nil, fmt.Errorf("not in canonical form: %s", data)
	}
	return t, nil
}

// apply sets the fields of the spec in set from the patch, and clears those in gone.
func (p *plainPatch) apply(spec *coordinationv1.LeaseSpec, set, gone specFields) {
	touched := set | gone
	if touched&acquireTime != 0 {
		spec.AcquireTime = p.spec.AcquireTime
	}
	if touched&holderIdentity != 0 {
		spec.HolderIdentity = p.spec.HolderIdentity
	}
	if touched&leaseDurationSeconds != 0 {
		spec.LeaseDurationSeconds = p.spec.LeaseDurationSeconds
	}
	if touched&leaseTransitions != 0 {
		spec.LeaseTransitions = p.spec.LeaseTransitions
	}
	if touched&renewTime != 0 {
		spec.RenewTime = p.spec.RenewTime
	}
}

// conditions writes the patch's metadata over the lease's.
func (p *plainPatch) conditions(lease *coordinationv1.Lease) {
	for _, c := range []struct {
		from string
		to   *string
	}{
		{p.meta.name, &lease.Name},
		{p.meta.namespace, &lease.Namespace},
		{p.meta.uid, (*string)(&lease.UID)},
		{p.meta.resourceVersion, &lease.ResourceVersion},
	} {
		if c.from != "" {
			*c.to = c.from
		}
	}
}

// merge returns the lease with the merge patch.
func (p *plainPatch) merge(live *coordinationv1.Lease) draft {
	lease := live.DeepCopy()
	p.conditions(lease)
	p.apply(&lease.Spec, p.set, p.null)
	lease.Labels = mergeMap(lease.Labels, p.labels)
	lease.Annotations = mergeMap(lease.Annotations, p.annotations)
	d := draft{lease: lease, sameMeta: lease.UID == live.UID && sameMap(lease.Labels, live.Labels) &&
		len(lease.Annotations) == len(live.Annotations)}
	for key, value := range lease.Annotations {
		before, ok := live.Annotations[key]
		d.sameMeta = d.sameMeta && ok
		if value != before {
			d.annotations = append(d.annotations, key)
		}
	}
	return d
}

func mergeMap(m map[string]string, changes map[string]*string) map[string]string {
	for key, value := range changes {
		switch {
		case value == nil:
			delete(m, key)
		case m == nil:
			m = map[string]string{key: *value}
		default:
			m[key] = *value
		}
	}
	if len(m) == 0 {
		return nil
	}
	return m
}

func mergePatch(live *coordinationv1.Lease, data []byte, fieldValidation string) (draft, error) {
	if p, ok := parsePlainPatch(data); ok {
		return p.merge(live), nil
	}
	var check map[string]any
	if err := utiljson.Unmarshal(data, &check); err != nil {
		return draft{}, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	if check == nil {
		return draft{}, apierrors.NewBadRequest("Invalid JSON Patch")
	}
	doc, err := json.Marshal(withKind(live))
	if err != nil {
		return draft{}, err
	}
	patched := merge(doc, data)
	lease, err := decode(patched, fieldValidation)
	if err != nil {
		return draft{}, err
	}
	return draft{lease: lease}, nil
}

// merge is RFC 7386.
func merge(doc, patch json.RawMessage) json.RawMessage {
	var changes map[string]json.RawMessage
	if json.Unmarshal(patch, &changes) != nil || changes == nil {
		return patch
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(doc, &fields) != nil || fields == nil {
		fields = map[string]json.RawMessage{}
	}
	for key, change := range changes {
		if string(change) == "null" {
			delete(fields, key)
		} else {
			fields[key] = merge(fields[key], change)
		}
	}
	merged, err := json.Marshal(fields)
	if err != nil {
		return patch // cannot be: all of it has been unmarshalled
	}
	return merged
}

var strictJSON = k8sjson.NewSerializerWithOptions(k8sjson.DefaultMetaFactory, scheme, scheme,
	k8sjson.SerializerOptions{Strict: true})

// decode reads a patched lease as the server does: it drops unknown fields, or rejects them if the client asks for
// that.
func decode(data []byte, fieldValidation string) (*coordinationv1.Lease, error) {
	lease := &coordinationv1.Lease{}
	_, _, err := strictJSON.Decode(data, &leaseGVK, lease)
	if err != nil && (!runtime.IsStrictDecodingError(err) || fieldValidation == metav1.FieldValidationStrict) {
		return nil, badPatch(string(data), err)
	}
	normalize(lease)
	return lease, nil
}

func badPatch(what string, err error) error {
	return apierrors.NewInvalid(schema.GroupKind{}, "",
		field.ErrorList{field.Invalid(field.NewPath("patch"), what, err.Error())})
}

func strategicPatch(live *coordinationv1.Lease, data []byte, fieldValidation string) (draft, error) {
	// A strategic patch of plain fields is a merge patch.
	if p, ok := parsePlainPatch(data); ok && p.specOnly() {
		return p.merge(live), nil
	}
	var patch map[string]any
	if err := utiljson.Unmarshal(data, &patch); err != nil {
		return draft{}, apierrors.NewBadRequest(err.Error())
	}
	doc, err := runtime.DefaultUnstructuredConverter.ToUnstructured(withKind(live))
	if err != nil {
		return draft{}, err
	}
	patched, err := strategicpatch.StrategicMergeMapPatch(doc, patch, &coordinationv1.Lease{})
	if err != nil {
		return draft{}, apierrors.NewBadRequest(err.Error())
	}
	lease := &coordinationv1.Lease{}
	err = runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(patched, lease, true)
	if err != nil && (!runtime.IsStrictDecodingError(err) || fieldValidation == metav1.FieldValidationStrict) {
		return draft{}, badPatch(fmt.Sprintf("%+v", patch), err)
	}
	normalize(lease)
	return draft{lease: lease}, nil
}

func applyPatch(r *record, data []byte, manager string, force bool) (draft, error) {
	if d, ok, err := applySpec(r, data, manager, force); ok || err != nil {
		return d, err
	}
	body, err := yaml.ToJSON(data)
	if err != nil {
		return draft{}, apierrors.NewBadRequest(fmt.Sprintf("error decoding YAML: %v", err))
	}
	applied := map[string]any{}
	if err := utiljson.Unmarshal(body, &applied); err != nil {
		return draft{}, apierrors.NewBadRequest(fmt.Sprintf("error decoding YAML: %v", err))
	}
	lease, err := ownApplied(r.lease, applied, manager, force)
	if err != nil {
		return draft{}, asStatus(err)
	}
	return draft{lease: lease, applied: true}, nil
}

// applySpec applies by arithmetic what it can: plain fields of the spec to a lease that exists, by a manager that
// has applied nothing else, when there is no conflict to report.
func applySpec(r *record, data []byte, manager string, force bool) (d draft, ok bool, err error) {
	if !r.owners.simple || manager == "kubectl" { // kubectl's applies depend on an annotation
		return d, false, nil
	}
	p, ok := parsePlainPatch(data)
	if !ok || !p.specOnly() || p.null != 0 || p.set == 0 {
		return d, false, nil
	}
	before := r.owners.find(manager, metav1.ManagedFieldsOperationApply)
	if before.rest != "" {
		return d, false, nil
	}
	live := r.lease
	others := r.owners.others(manager, metav1.ManagedFieldsOperationApply)
	gone := before.spec &^ p.set &^ others
	lease := live.DeepCopy()
	p.conditions(lease)
	p.apply(&lease.Spec, p.set, gone)
	changed, _, _ := compareSpecs(&live.Spec, &lease.Spec)
	if changed&others != 0 && !force {
		return d, false, nil
	}
	d = draft{lease: lease, sameMeta: lease.UID == live.UID, applied: true}
	d.owners = r.owners.apply(manager, p.set, changed, gone)
	lease.ManagedFields = d.owners.encode()
	return d, true, nil
}

// asStatus returns the status with which the server answers an error of the field manager.
func asStatus(err error) error {
	if _, ok := err.(apierrors.APIStatus); ok {
		return err
	}
	return statusUnknown(err.Error())
}

"""Say in a line what each type of event means: what happened, and where to look.

Source: Arm IHI 0070, sections 7.3.2 to 7.3.21.
"""

from __future__ import annotations

from harness.smmu.events import EventType

_E = EventType
_MEANINGS = {
    _E.F_UUT: "The SMMU does not support this kind of transaction. Look at the device and its bus; "
    "the SMMU's manual explains the reason.",
    _E.C_BAD_STREAMID: "The stream table has no entry for this StreamID. Look at the firmware's "
    "mapping of devices (IORT), and at whether the kernel knows the device.",
    _E.F_STE_FETCH: "The stream table entry could not be read from memory. Look at STRTAB_BASE and "
    "at the memory behind the fetch address.",
    _E.C_BAD_STE: "The stream table entry is invalid: V is 0, or its fields contradict each other. "
    "Look at whether a driver has attached the device, and at the STE.",
    _E.F_BAD_ATS_TREQ: "The device sent an ATS translation request that its STE (EATS) or SMMUEN "
    "does not allow. Look at whether ATS is on in the device but not in the SMMU.",
    _E.F_STREAM_DISABLED: "The STE takes only transactions with a SubstreamID (S1DSS), but this "
    "had none, or had 0. Look at the device's PASID, and at S1DSS.",
    _E.F_TRANSL_FORBIDDEN: "The device sent an address as translated by ATS, and it may "
    "not do so. Look at STE.EATS and CR0.ATSCHK, and whether the device may be trusted.",
    _E.C_BAD_SUBSTREAMID: "The SubstreamID (PASID) has no context descriptor in the table. "
    "Look at S1CDMax in the STE, and at which PASIDs the driver has bound.",
    _E.F_CD_FETCH: "The context descriptor could not be read from memory. Look at S1ContextPtr in "
    "the STE; for a guest, at whether that address is its memory.",
    _E.C_BAD_CD: "The context descriptor is invalid: V is 0, or its fields contradict each other. "
    "Look at whether the PASID is still bound, and at the CD.",
    _E.F_WALK_EABT: "A page table could not be read from memory, or not be updated. Look at the "
    "memory behind the fetch address: is it RAM, and intact?",
    _E.F_TRANSLATION: "The device used an address that is not mapped. Look at the driver's DMA "
    "mappings: used before map, after unmap, or beyond the end.",
    _E.F_ADDR_SIZE: "A page table, or the address itself, leads beyond the SMMU's address size. "
    "Look at the entry in the page table, and at IPS and the OAS.",
    _E.F_ACCESS: "The page's access flag is 0. Look at who made the page table: without HTTU, "
    "software must set the flag.",
    _E.F_PERMISSION: "The page is mapped, but not for this access. Look at the direction in which "
    "the driver mapped it, and at privilege and execute rights.",
    _E.F_TLB_CONFLICT: "The TLB has two entries for one address. Look for page tables that were "
    "changed without break-before-make or invalidation.",
    _E.F_CFG_CONFLICT: "The configuration cache has two entries for one stream. Look at STE.CONT.",
    _E.E_PAGE_REQUEST: "A hint that the device will use these pages soon. No answer is needed.",
    _E.F_VMS_FETCH: "The VM structure of the stream could not be read from memory. Look at "
    "STE.VMSPtr.",
}
_STAGE2 = "It is a fault of stage 2, which the hypervisor owns: look at what it maps for the guest."


def meaning(kind: int, *, stage2: bool = False) -> str:
    """Return what a type of event means, which is more of a fault of stage 2."""
    if 0xE0 <= kind <= 0xEF:
        return "Implementation defined: the manual of this SMMU explains it."
    try:
        said = _MEANINGS[EventType(kind)]
    except ValueError:
        return "The specification reserves this number: the record is damaged, or newer than this."
    return f"{said} {_STAGE2}" if stage2 else said

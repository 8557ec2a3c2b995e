"""The review queue: what deserves a human look is kept, labelled and comes back as training data.

| module | |
|---|---|
| `folder` | the bounded folder: pictures, drafts and lineage |
| `settings` | what is kept, and how much |
| `queue` | chooses what deserves it, and writes behind the inspection's back |
| `handoff` | to a labelling tool, and the corrected labels back into the data set |

Nothing is kept unless somebody names a folder.
"""
